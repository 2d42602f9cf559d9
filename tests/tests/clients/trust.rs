//! Trust in the agent's CA: with constraints, after a rotation, and installed on the host.
use crate::stage::{Ran, Stage};
use harness::client::Running;
use harness::repository;
use serde_json::json;
use std::path::{Path, PathBuf};

/// A client whose whole store is replaced by a PEM file through this variable.
struct Store {
    name: &'static str,
    variable: &'static str,
    /// Fetches a URL.
    command: &'static str,
    /// Whether it looks at name constraints of a root.
    constrained: bool,
}

const fn store(
    name: &'static str,
    variable: &'static str,
    command: &'static str,
    constrained: bool,
) -> Store {
    Store {
        name,
        variable,
        command,
        constrained,
    }
}

const ORDERS: &str = "https://api.orders.example/v1/orders";
/// No api of the policy: with trust, the agent refuses it and says so.
const PAYROLL: &str = "https://api.payroll.example/v1/salaries";

#[rustfmt::skip]
const STORES: [Store; 5] = [
    store("OpenSSL (curl)", "CURL_CA_BUNDLE", "curl -sS", true),
    store("OpenSSL (Python)", "REQUESTS_CA_BUNDLE", "python3 with_requests.py", true),
    store("OpenSSL (Node)", "NODE_EXTRA_CA_CERTS", "node with_fetch.mjs", true),
    store("GnuTLS (wget)", "WGETRC", "wget -nv -O -", true),
    store("Java", "JAVA_TOOL_OPTIONS", "java WithHttpClient.java", false),
];

impl Store {
    /// Fetches `url` with trust in the certificates of `pem` alone.
    fn fetch(&self, stage: &Stage, pem: &Path, url: &str) -> Ran {
        let value = match self.variable {
            "JAVA_TOOL_OPTIONS" => java(stage, pem),
            "WGETRC" => wget(stage, pem),
            _ => pem.display().to_string(),
        };
        stage.run_with(
            &format!("{} {url}", self.command),
            &[(self.variable, &value)],
        )
    }

    /// Whether it got to hear the agent, which it does only if it trusts it.
    fn hears(&self, stage: &Stage, pem: &Path, url: &str) -> bool {
        let ran = self.fetch(stage, pem, url);
        let heard = ran
            .summary
            .contains(if url == ORDERS { " allowed" } else { "DENY" })
            && (ran.out.contains("orders") || (ran.out + &ran.err).contains("Tollgate"));
        eprintln!("{:<18} {url} {heard}", self.name);
        heard
    }
}

/// Settings by which wget trusts what is in `pem`, and not the system's store.
fn wget(stage: &Stage, pem: &Path) -> String {
    let settings = pem.with_extension("wgetrc");
    let none = stage.scratch().join("none");
    let text = format!(
        "ca_certificate = {}\nca_directory = {}\n",
        pem.display(),
        none.display()
    );
    std::fs::write(&settings, text).unwrap();
    settings.display().to_string()
}

/// Options by which Java trusts what is in `pem`, of a store that its own tool makes.
fn java(stage: &Stage, pem: &Path) -> String {
    let keystore = pem.with_extension("p12");
    if !keystore.exists() {
        let made = stage
            .world
            .client("keytool")
            .args(["-importcert", "-noprompt", "-alias", "ca"])
            .args(["-storetype", "PKCS12", "-storepass", "changeit", "-file"])
            .arg(pem)
            .arg("-keystore")
            .arg(&keystore)
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
    }
    let keystore = keystore.display();
    format!("-Djavax.net.ssl.trustStore={keystore} -Djavax.net.ssl.trustStorePassword=changeit")
}

/// What `tollgate VERB …` prints, where it succeeds.
fn asked(stage: &Stage, verb: &str, arguments: &[&str]) -> String {
    let output = stage.agent.output(&stage.world, verb, arguments).unwrap();
    assert!(output.status.success(), "{verb} {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn export(stage: &Stage, name: &str, arguments: &[&str]) -> PathBuf {
    let path = stage.scratch().join(name);
    std::fs::write(&path, asked(stage, "ca", arguments)).unwrap();
    path
}

/// A host that policy does not name is not looked up: the client side knows its address by a file.
fn knows_payroll(stage: &Stage) {
    let hosts = stage.world.directory().join("hosts");
    let site = harness::Site::PAYROLL;
    let text = format!("127.0.0.1 localhost\n{} {}\n", site.v4, site.host);
    std::fs::write(&hosts, text).unwrap();
    let mount = format!("mount --bind {} /etc/hosts", hosts.display());
    stage.world.clients.script(&mount).unwrap();
}

#[test]
fn a_constrained_root_is_good_for_the_hosts_of_the_policy_alone() {
    let stage = Stage::small();
    knows_payroll(&stage);
    let whole = export(&stage, "whole.pem", &["export"]);
    let constrained = export(&stage, "constrained.pem", &["export", "--constrained"]);
    let stranger = stage.scratch().join("stranger.pem");
    std::fs::write(&stranger, stage.world.ca.pem()).unwrap();
    for store in &STORES {
        // Otherwise it would be some other store that it trusts by.
        assert!(!store.hears(&stage, &stranger, ORDERS), "{}", store.name);
        assert!(store.hears(&stage, &constrained, ORDERS), "{}", store.name);
        assert!(store.hears(&stage, &whole, PAYROLL), "{}", store.name);
        assert_eq!(
            store.hears(&stage, &constrained, PAYROLL),
            !store.constrained,
            "{}",
            store.name
        );
    }
}

#[test]
fn a_rotation_is_not_noticed_until_its_overlap_ends() {
    let stage = Stage::small();
    knows_payroll(&stage);
    let old = export(&stage, "old.pem", &["export"]);
    let demo = repository().join("tests/demo");
    let demo = stage.world.show(&demo, "demo").unwrap();
    let mut node = stage.agent.governed(&stage.world, "fleet", "node");
    node.arg(demo.join("client.mjs"));
    let mut running = Running::start(node).unwrap();
    let mut ask = |url: &str| running.ask(&json!({"method": "GET", "url": url}).to_string());
    assert_eq!(ask(ORDERS).unwrap()["status"], 200);
    let told = asked(&stage, "ca", &["rotate"]);
    assert!(told.contains("overlap      until "), "{told}");
    let new = export(&stage, "new.pem", &["export"]);
    assert_ne!(
        std::fs::read_to_string(&old).unwrap(),
        std::fs::read_to_string(&new).unwrap()
    );
    for store in &STORES {
        for pem in [&old, &new] {
            let pem_name = pem.display();
            assert!(
                store.hears(&stage, pem, ORDERS),
                "{} {pem_name}",
                store.name
            );
        }
    }
    // A program that has been running since before, on a connection to a host that it did not speak to yet.
    assert_eq!(ask(PAYROLL).unwrap()["status"], 403);
    // With what a run is given now, whatever store that replaces.
    let wget = stage.run(&format!("wget -nv -O - {ORDERS}"));
    assert!(wget.out.contains("orders"), "{wget:?}");

    asked(&stage, "ca", &["rotate", "--overlap", "0s"]);
    let last = export(&stage, "last.pem", &["export"]);
    let curl = &STORES[0];
    assert!(curl.hears(&stage, &last, ORDERS));
    assert!(!curl.hears(&stage, &new, ORDERS), "the key is gone");
}

/// The host's store, as the client side sees it, over the host's own: what is written is gone with the world.
fn over_the_hosts_store(stage: &Stage) {
    let at = stage.world.directory().join("over");
    let mut script = format!("set -e; mkdir {0}; mount -t tmpfs over {0}\n", at.display());
    for (number, directory) in [
        "/etc/ssl",
        "/etc/chromium",
        "/usr/local/share/ca-certificates",
    ]
    .iter()
    .enumerate()
    {
        let own = at.join(number.to_string());
        let own = own.display();
        script.push_str(&format!(
            "mkdir -p {own}/u {own}/w; mount -t overlay -o lowerdir={directory},upperdir={own}/u,workdir={own}/w o {directory}\n"
        ));
    }
    stage.world.clients.script(&script).unwrap();
}

/// A copy of what the client side's programs trust now, which `tollgate run` lays its own over.
fn installed(stage: &Stage, name: &str) -> PathBuf {
    let path = stage.scratch().join(name);
    let script = format!("cp /etc/ssl/certs/ca-certificates.crt {}", path.display());
    stage.world.clients.script(&script).unwrap();
    path
}

#[test]
fn what_is_installed_on_the_host_holds_for_the_policys_hosts_and_can_be_taken_out() {
    let stage = Stage::small();
    over_the_hosts_store(&stage);
    let curl = &STORES[0];
    let before = installed(&stage, "before.pem");
    assert!(!curl.hears(&stage, &before, ORDERS));

    let told = asked(&stage, "trust", &["install", "--dry-run"]);
    assert!(told.contains("would write"), "{told}");
    let untouched = std::fs::read(installed(&stage, "dry.pem")).unwrap();
    assert_eq!(untouched, std::fs::read(&before).unwrap());

    let told = asked(&stage, "trust", &["install"]);
    assert!(
        told.contains("the CA is good for: api.anthropic.com, "),
        "{told}"
    );
    let after = installed(&stage, "after.pem");
    assert!(curl.hears(&stage, &after, ORDERS));
    assert!(!curl.hears(&stage, &after, PAYROLL));
    let policy = "grep -c CACertificates /etc/chromium/policies/managed/tollgate.json";
    stage.world.clients.script(policy).unwrap();

    let again = asked(&stage, "trust", &["install"]);
    assert!(
        !again.contains("written") && !again.contains("run "),
        "{again}"
    );

    let told = asked(&stage, "trust", &["uninstall"]);
    assert!(told.contains("removed"), "{told}");
    let gone = installed(&stage, "gone.pem");
    assert!(!curl.hears(&stage, &gone, ORDERS));
    stage.world.clients.script(&format!("! {policy}")).unwrap();
    let told = asked(&stage, "trust", &["uninstall"]);
    assert_eq!(told, "nothing is installed\n");
}
