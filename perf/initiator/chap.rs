//! The initiator's half of CHAP with MD5 (RFC 1994, RFC 7143 12.1.3).
//!
//! Knows how to answer a challenge. Does not know when one is due.

use md5::{Digest, Md5};

use crate::fail::{Result, failure};
use crate::keys::{Keys, binary, hex};

/// The keys that answer the challenge in `offered`.
pub(crate) fn answer(offered: &Keys, user: &str, secret: &str) -> Result<Keys> {
    let missing = |key: &str| failure!("the target's CHAP challenge lacks {key}: look at its authentication");
    let id = offered.number("CHAP_I")?.ok_or_else(|| missing("CHAP_I"))?;
    let challenge = binary(offered.get("CHAP_C").ok_or_else(|| missing("CHAP_C"))?)?;
    let mut keys = Keys::default();
    keys.push("CHAP_N", user);
    keys.push("CHAP_R", hex(&response(id as u8, secret.as_bytes(), &challenge)));
    Ok(keys)
}

fn response(id: u8, secret: &[u8], challenge: &[u8]) -> [u8; 16] {
    let mut hash = Md5::new();
    hash.update([id]);
    hash.update(secret);
    hash.update(challenge);
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_response_hashes_id_secret_and_challenge() {
        // MD5 of the letters "abc", a vector of RFC 1321.
        assert_eq!(hex(&response(b'a', b"b", b"c")), "0x900150983cd24fb0d6963f7d28e17f72");
    }

    #[test]
    fn a_challenge_without_id_is_refused() {
        let mut offered = Keys::default();
        offered.push("CHAP_C", "0x00");
        assert!(answer(&offered, "me", "secret").is_err());
    }
}
