//! Registration with iSNS servers, by the real program: a scripted server, and Open-iSNS where it is installed.
//!
//! Knows what a server has been told. Does not know in which requests (`isns::registrar` has tests of those).

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use goldrush::isns::attribute::{Attribute, AttributeList, Attributes, Tag};
use goldrush::isns::pdu::{Assembler, Function, Message, Sender};

use crate::cli::Desk;
use crate::running::{Running, start, start_nodes, status};

/// What a server has been told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Told {
    nodes: BTreeSet<String>,
    portals: BTreeSet<SocketAddr>,
}

/// A server in this process, which remembers names and portals and knows no more of iSNS than it needs.
struct Scripted {
    told: Arc<Mutex<Told>>,
    connections: Arc<Mutex<Vec<TcpStream>>>,
    port: u16,
}

impl Scripted {
    fn start(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (told, connections) = (Arc::<Mutex<Told>>::default(), Arc::<Mutex<Vec<TcpStream>>>::default());
        let (memory, open) = (Arc::clone(&told), Arc::clone(&connections));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                open.lock().unwrap().push(stream.try_clone().unwrap());
                let memory = Arc::clone(&memory);
                std::thread::spawn(move || converse(stream, &memory));
            }
        });
        Self { told, connections, port }
    }

    fn told(&self) -> Told {
        self.told.lock().unwrap().clone()
    }

    /// Forgets everything and everybody, as a restart does without a database.
    fn restart(&self) {
        *self.told.lock().unwrap() = Told::default();
        for stream in self.connections.lock().unwrap().drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

fn converse(mut stream: TcpStream, told: &Mutex<Told>) {
    let (mut assembler, mut bytes) = (Assembler::default(), [0; 4096]);
    while let Ok(read) = stream.read(&mut bytes) {
        if read == 0 {
            return;
        }
        let mut input = &bytes[..read];
        while let Some(message) = assembler.next(&mut input).unwrap() {
            let mut answer = Vec::new();
            answer_to(&message, &mut told.lock().unwrap()).encode(&mut answer);
            if stream.write_all(&answer).is_err() {
                return;
            }
        }
    }
}

fn answer_to(message: &Message, told: &mut Told) -> Message {
    let attributes: Vec<Attribute<'_>> = Attributes(&message.payload).map(Result::unwrap).collect();
    let source = attributes[0].text().unwrap();
    let split = attributes.iter().position(|attribute| attribute.tag == Tag::DELIMITER).unwrap();
    let adds = message.function == Function::REGISTER;
    if message.replace {
        *told = Told::default();
    }
    let mut list = AttributeList(vec![0; 4]);
    list.empty(Tag::DELIMITER);
    if message.function == Function::QUERY {
        if told.nodes.contains(source) {
            list.text(Tag::ISCSI_NAME, source);
        }
    } else {
        let mut address = None;
        for attribute in &attributes[split + 1..] {
            match attribute.tag {
                Tag::ENTITY if !adds => *told = Told::default(),
                Tag::ISCSI_NAME if adds => drop(told.nodes.insert(attribute.text().unwrap().to_owned())),
                Tag::ISCSI_NAME => drop(told.nodes.remove(attribute.text().unwrap())),
                Tag::PORTAL_ADDRESS => address = attribute.address(),
                Tag::PORTAL_PORT => {
                    let portal = SocketAddr::new(address.unwrap(), attribute.tcp_port().unwrap());
                    let _ = if adds { told.portals.insert(portal) } else { told.portals.remove(&portal) };
                }
                _ => {}
            }
        }
    }
    let (function, transaction, payload) = (message.function.answer(), message.transaction, list.0);
    Message { function, sender: Sender::Server, replace: false, transaction, payload }
}

#[track_caller]
fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(90);
    while !is_so() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn name(node: &str) -> String {
    format!("iqn.2026-11.io.goldrush:{node}")
}

/// A configuration with these targets, registered at `isns`; their images are made.
fn configuration(desk: &Desk, isns: &str, nodes: &[&str]) -> String {
    let mut text =
        format!("listen = [\"127.0.0.1:0\"]\n[isns]\nservers = [\"{isns}\"]\nentity = \"Test-Store\"\n");
    for node in nodes {
        if !desk.path(&format!("{node}.vhd")).exists() {
            desk.goldrush_ok(&format!("image create {node}.vhd --size 8M"));
        }
        text += &format!(
            "[[target]]\nname = \"{}\"\n[[target.lun]]\nlun = 0\npath = \"{node}.vhd\"\n",
            name(node)
        );
    }
    text
}

const SERVE: &str = "serve --config c.toml --golden-cache 1M --register-buffers false --cores 0";

fn told_of(nodes: &[&str], server: &Running) -> Told {
    let portal = SocketAddr::from(([127, 0, 0, 1], server.port));
    Told { nodes: nodes.iter().map(|node| name(node)).collect(), portals: [portal].into() }
}

#[test]
fn targets_are_registered_follow_a_reload_and_are_gone_after_the_stop() {
    let (desk, isns) = (Desk::new(), Scripted::start(0));
    let address = format!("127.0.0.1:{}", isns.port);
    desk.write("c.toml", configuration(&desk, &address, &["a", "b"]));
    let Some(server) = start(&desk, SERVE) else { return };
    let expected = told_of(&["a", "b"], &server);
    wait_for("both targets are registered", || isns.told() == expected);
    wait_for("status says so", || status(&desk, "")["isns"][0]["state"] == "registered");
    let now = status(&desk, "");
    let registration = serde_json::json!({
        "server": address, "entity": "test-store", "state": "registered", "portals": 1, "targets": 2, "targets_refused": 0,
    });
    assert_eq!(now["isns"], serde_json::json!([registration]));
    let page = desk.goldrush_ok("status --interval 0");
    let line = format!("iSNS      {address} as test-store: registered, 2 targets at 1 portals\n");
    assert!(page.contains(&line), "{page}");

    desk.write("c.toml", configuration(&desk, &address, &["b", "c"]));
    desk.goldrush_ok("reload");
    let expected = told_of(&["b", "c"], &server);
    wait_for("the reload is registered", || isns.told() == expected);

    // Another server instead: the first one is told, too.
    let other = Scripted::start(0);
    desk.write("c.toml", configuration(&desk, &format!("127.0.0.1:{}", other.port), &["b", "c"]));
    assert!(desk.goldrush_ok("reload").contains("rules changed"));
    wait_for("the other server is told", || other.told() == expected);
    wait_for("the former one forgets", || isns.told() == Told::default());

    server.stop();
    assert_eq!(other.told(), Told::default());
}

#[test]
fn a_server_that_is_late_or_restarts_is_told_everything() {
    let desk = Desk::new();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let Some(server) = start_nodes(&desk, 3, &format!("--isns 127.0.0.1:{port} --isns-entity store")) else {
        return;
    };
    wait_for("nobody is there", || {
        let now = status(&desk, "");
        let problem = now["isns"][0]["problem"].as_str().unwrap_or_default();
        now["isns"][0]["state"] == "unreachable" && problem.contains("cannot be reached")
    });
    let isns = Scripted::start(port);
    let expected = told_of(&["node-001", "node-002", "node-003"], &server);
    wait_for("it is told when it comes", || isns.told() == expected);
    isns.restart();
    wait_for("it is told again", || isns.told() == expected);
    server.stop();
    assert_eq!(isns.told(), Told::default());
}

#[test]
fn a_strange_server_costs_neither_the_start_nor_the_stop() {
    let desk = Desk::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // Takes connections and says something else, or nothing.
    let strange = std::thread::spawn(move || {
        let (mut first, _) = listener.accept().unwrap();
        first.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        let (second, _) = listener.accept().unwrap();
        (first, second, listener)
    });
    let Some(server) = start_nodes(&desk, 1, &format!("--isns 127.0.0.1:{port}")) else { return };
    let kept = strange.join().unwrap();
    let begun = Instant::now();
    server.stop();
    assert!(begun.elapsed() < Duration::from_secs(60));
    drop(kept);
}

/// Open-iSNS on a port of its own. It takes its port from /etc/services alone, so it is shown another such file.
struct OpenIsns<'a> {
    desk: &'a Desk,
    child: Child,
}

impl Drop for OpenIsns<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl<'a> OpenIsns<'a> {
    /// `None`, loudly, where it is not installed or cannot have a port of its own.
    fn start(desk: &'a Desk, port: u16) -> Option<Self> {
        if Command::new("isnsd").arg("--help").output().is_err() {
            eprintln!("SKIPPED: isnsd is not installed (Debian: open-isns-server)");
            return None;
        }
        let folder = desk.path("isnsd");
        std::fs::create_dir(&folder).unwrap();
        let shown = folder.display();
        desk.write("services", format!("isns {port}/tcp\nisns {port}/udp\n"));
        let common = format!("Security = 0\nControlSocket = {shown}/control\n");
        desk.write(
            "isnsd.conf",
            format!(
                "SourceName = iqn.2026-11.test:isns\nPIDFile = {shown}/pid\nSLPRegister = 0\n\
                 DefaultDiscoveryDomain = 1\nRegistrationPeriod = 60\n{common}"
            ),
        );
        desk.write(
            "isnsadm.conf",
            format!("SourceName = iqn.2026-11.test:admin\nServerAddress = 127.0.0.1:{port}\n{common}"),
        );
        let script = "mount --bind services /etc/services && exec isnsd --config isnsd.conf --foreground";
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script]).current_dir(desk.path(""));
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if child.try_wait().unwrap().is_some() {
                eprintln!("SKIPPED: isnsd cannot have a port of its own here: mounts are forbidden");
                return None;
            }
            assert!(Instant::now() < until, "isnsd does not listen");
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(Self { desk, child })
    }

    /// What its administrator is shown.
    fn list(&self, what: &str) -> String {
        let mut command = Command::new("isnsadm");
        command.args(["--config", "isnsadm.conf", "--local", "--list", what]).current_dir(self.desk.path(""));
        String::from_utf8_lossy(&command.output().unwrap().stdout).into_owned()
    }

    /// True when it has these targets and no others, at this portal.
    fn has(&self, nodes: &[&str], port: u16) -> bool {
        let (targets, portals) = (self.list("nodes"), self.list("portals"));
        targets.matches("iSCSI name").count() == nodes.len()
            && nodes.iter().all(|node| targets.contains(&format!("\"{}\"", name(node))))
            && portals.contains("127.0.0.1")
            && portals.contains(&format!("= {port}/tcp"))
    }
}

#[test]
fn open_isns_shows_targets_and_portals_after_a_reload_and_none_after_the_stop() {
    let desk = Desk::new();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let Some(isns) = OpenIsns::start(&desk, port) else { return };
    let address = format!("127.0.0.1:{port}");
    desk.write("c.toml", configuration(&desk, &address, &["a", "b"]));
    let Some(server) = start(&desk, SERVE) else { return };
    wait_for("isnsadm lists both targets", || isns.has(&["a", "b"], server.port));
    assert!(isns.list("entities").contains("\"test-store\""), "{}", isns.list("entities"));
    desk.write("c.toml", configuration(&desk, &address, &["b", "c"]));
    desk.goldrush_ok("reload");
    wait_for("isnsadm lists what the reload left", || isns.has(&["b", "c"], server.port));
    wait_for("it is all there is to say", || status(&desk, "")["isns"][0]["state"] == "registered");

    // A killed server registers anew, in the place of what it left.
    server.kill();
    let server = start(&desk, SERVE).unwrap();
    wait_for("the next server is there instead", || isns.has(&["b", "c"], server.port));
    assert_eq!(isns.list("portals").matches("Portal IP address").count(), 1, "{}", isns.list("portals"));
    server.stop();
    assert_eq!((isns.list("nodes"), isns.list("portals")), (String::new(), String::new()));
}

#[test]
fn a_thousand_targets_are_more_than_one_message_for_open_isns() {
    let desk = Desk::new();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let Some(isns) = OpenIsns::start(&desk, port) else { return };
    let address = format!("127.0.0.1:{port}");
    // Served elsewhere: these need no image.
    let mut text = configuration(&desk, &address, &["a"]);
    for number in 0..1000 {
        text += &format!(
            "[[target]]\nname = \"{}\"\nredirect = {{ to = \"192.0.2.1:3260\" }}\n",
            name(&format!("far-{number:04}"))
        );
    }
    desk.write("c.toml", text);
    let Some(server) = start(&desk, SERVE) else { return };
    wait_for("all are registered", || {
        let now = status(&desk, "");
        now["isns"][0]["state"] == "registered" && now["isns"][0]["targets"] == 1001
    });
    assert_eq!(isns.list("nodes").matches("iSCSI name").count(), 1001);
    server.stop();
    assert_eq!(isns.list("nodes"), "");
}
