//! SendTargets (RFC 7143, 13.3, Appendix C): which targets an initiator may try, and where.
//!
//! Knows the request and the text of the answer. Does not know which targets exist (the caller lists them) nor
//! how long text is divided over PDUs (`session`).

use core::borrow::Borrow;

use super::text_keys::write_pair;

/// What `SendTargets` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SendTargets {
    /// Every target this initiator may see. Only in a discovery session.
    All,
    /// One target by its name.
    Named(String),
    /// The target this session is logged in to. Only in a normal session.
    Session,
}

impl SendTargets {
    pub fn parse(value: &str) -> Self {
        match value {
            "All" => Self::All,
            "" => Self::Session,
            name => Self::Named(name.to_owned()),
        }
    }
}

/// One target and where it is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetListing {
    pub name: String,
    /// Address as it stands in TargetAddress (`192.0.2.1:3260`, `[2001:db8::1]:3260`) and portal group tag.
    pub portals: Vec<(String, u16)>,
}

/// Appends the answer to `request`: for each listing it covers `TargetName`, then a `TargetAddress` a portal.
/// `session_target` is the target of a normal session, `None` in a discovery session; a normal session learns of
/// no other target. A request that is illegal in the session is answered with Reject.
pub fn send_targets(
    request: &SendTargets,
    listings: impl IntoIterator<Item: Borrow<TargetListing>>,
    session_target: Option<&str>,
    out: &mut Vec<u8>,
) {
    let wanted = match (request, session_target) {
        (SendTargets::All, None) => None,
        (SendTargets::Named(name), None) => Some(name.as_str()),
        (SendTargets::Session, Some(target)) => Some(target),
        (SendTargets::Named(name), Some(target)) if same_name(name, target) => Some(target),
        (SendTargets::All | SendTargets::Named(_), Some(_)) | (SendTargets::Session, None) => {
            write_pair(out, "SendTargets", "Reject");
            return;
        }
    };
    for listing in listings {
        let listing = listing.borrow();
        if wanted.is_none_or(|name| same_name(name, &listing.name)) {
            write_listing(listing, out);
        }
    }
}

fn write_listing(listing: &TargetListing, out: &mut Vec<u8>) {
    write_pair(out, "TargetName", &listing.name);
    for (address, portal_group) in &listing.portals {
        write_pair(out, "TargetAddress", &format!("{address},{portal_group}"));
    }
}

/// Names are compared without regard to case (RFC 3722 folds it).
fn same_name(one: &str, other: &str) -> bool {
    one.eq_ignore_ascii_case(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(value: &str, session_target: Option<&str>) -> String {
        let listings = [
            TargetListing {
                name: "iqn.2026-01.lab:a".into(),
                portals: vec![("192.0.2.1:3260".into(), 1), ("[2001:db8::1]:3260".into(), 2)],
            },
            TargetListing { name: "iqn.2026-01.lab:b".into(), portals: vec![] },
        ];
        let mut out = Vec::new();
        send_targets(&SendTargets::parse(value), &listings, session_target, &mut out);
        String::from_utf8(out).unwrap().replace('\0', "\n")
    }

    const A: &str = "TargetName=iqn.2026-01.lab:a\nTargetAddress=192.0.2.1:3260,1\n\
                     TargetAddress=[2001:db8::1]:3260,2\n";
    const B: &str = "TargetName=iqn.2026-01.lab:b\n";

    #[test]
    fn a_discovery_session_sees_all_or_one() {
        assert_eq!(ask("All", None), format!("{A}{B}"));
        assert_eq!(ask("iqn.2026-01.lab:b", None), B);
        assert_eq!(ask("iqn.2026-01.lab:B", None), B);
        assert_eq!(ask("iqn.2026-01.lab:c", None), "");
        assert_eq!(ask("", None), "SendTargets=Reject\n");
    }

    #[test]
    fn a_normal_session_sees_its_own_target_only() {
        assert_eq!(ask("", Some("iqn.2026-01.lab:a")), A);
        assert_eq!(ask("iqn.2026-01.lab:a", Some("iqn.2026-01.lab:a")), A);
        assert_eq!(ask("iqn.2026-01.lab:b", Some("iqn.2026-01.lab:a")), "SendTargets=Reject\n");
        assert_eq!(ask("Alle", Some("iqn.2026-01.lab:a")), "SendTargets=Reject\n");
        assert_eq!(ask("All", Some("iqn.2026-01.lab:a")), "SendTargets=Reject\n");
    }
}
