#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]
use super::*;

fn parse(text: &str) -> Result<Config, tollgate_policy::syntax::Faults> {
    Config::parse("config.yaml".to_owned(), text.to_owned())
}

#[test]
fn nothing_written_means_the_defaults() {
    for text in ["", "\n", "# port: 1\n\n"] {
        let config = parse(text).unwrap();
        assert_eq!(config.port, 15400);
        assert_eq!(config.policy, [PathBuf::from("/etc/tollgate/policy.d")]);
        assert_eq!(config.runtime_dir, PathBuf::from("/run/tollgate"));
        assert_eq!(config.mode, Mode::Enforce);
        assert!(config.workers >= 1);
    }
}

#[test]
fn every_key_is_read() {
    let config = parse(
        "port: 15999\npolicy: [/a.yaml, /b]\nsecrets_dir: /s\nstate_dir: /st\nruntime_dir: /r\n\
         pin_dir: /sys/fs/bpf/x\ncgroup_root: /cg\nmode: observe\ndns_servers: [10.0.0.1, \"::1\"]\nworkers: 3\n\
         limits: { connections: 10, head_bytes: 32KiB, head_fields: 50, held_bytes: 3MiB, handshake: 1s, head: 2s, body_idle: 3s,\n  \
         connect: 4s, response_head: 5m, response_idle: 6m, uninspected_idle: 8m, idle: 7s, drain: 250ms }\n\
         journal: false\naudit: { segment_bytes: 2MiB, segments: 4 }\n",
    )
    .unwrap();
    assert_eq!(config.port, 15999);
    assert_eq!(
        config.policy,
        [PathBuf::from("/a.yaml"), PathBuf::from("/b")]
    );
    assert_eq!(config.secrets_dir, PathBuf::from("/s"));
    assert_eq!(config.state_dir, PathBuf::from("/st"));
    assert_eq!(config.runtime_dir, PathBuf::from("/r"));
    assert_eq!(config.pin_dir, PathBuf::from("/sys/fs/bpf/x"));
    assert_eq!(config.cgroup_root, Some(PathBuf::from("/cg")));
    assert_eq!(config.mode, Mode::Observe);
    assert!(!config.journal && Config::default().journal);
    assert_eq!(config.dns_servers.len(), 2);
    assert_eq!(config.workers, 3);
    let limits = &config.limits;
    assert_eq!(
        (limits.connections, limits.head_bytes, limits.head_fields),
        (10, 32 << 10, 50)
    );
    assert_eq!(limits.held_bytes, 3 << 20);
    let seconds = [
        limits.handshake,
        limits.head,
        limits.body_idle,
        limits.connect,
        limits.idle,
    ];
    assert_eq!(seconds.map(|d| d.as_secs()), [1, 2, 3, 4, 7]);
    assert_eq!(
        [limits.response_head, limits.response_idle].map(|d| d.as_secs()),
        [300, 360]
    );
    assert_eq!(limits.drain, Duration::from_millis(250));
    assert_eq!(
        (config.audit.segment_bytes, config.audit.segments),
        (2 << 20, 4)
    );
}

/// Text, the place and message of its first fault, and its help.
const FAULTS: &[(&str, &str, &str)] = &[
    (
        "prot: 1",
        "config.yaml:1:1: error: unknown key `prot`",
        "did you mean `port`?",
    ),
    (
        "port: 0",
        "config.yaml:1:7: error: expected an integer from 1 to 65535",
        "",
    ),
    (
        "port: 70000",
        "config.yaml:1:7: error: expected an integer from 1 to 65535",
        "",
    ),
    (
        "port: \"1\"",
        "config.yaml:1:7: error: expected an integer",
        "",
    ),
    (
        "mode: enforced",
        "config.yaml:1:7: error: expected one of",
        "did you mean `enforce`?",
    ),
    (
        "state_dir: var",
        "config.yaml:1:12: error: expected an absolute path",
        "start it with `/`",
    ),
    (
        "policy: []",
        "config.yaml:1:9: error: this list is empty",
        "",
    ),
    (
        "policy: [/a, b]",
        "config.yaml:1:14: error: expected an absolute path",
        "",
    ),
    (
        "dns_servers: [ns1]",
        "config.yaml:1:15: error: expected an IP address",
        "",
    ),
    (
        "workers: 0",
        "config.yaml:1:10: error: expected an integer from 1 to 1024",
        "",
    ),
    (
        "limits: 5",
        "config.yaml:1:9: error: expected a mapping",
        "",
    ),
    (
        "limits:\n  heda: 1s",
        "config.yaml:2:3: error: unknown key `heda`",
        "did you mean `head`?",
    ),
    (
        "limits:\n  head: 5",
        "config.yaml:2:9: error: expected a duration",
        "",
    ),
    (
        "limits:\n  head: 0s",
        "config.yaml:2:9: error: expected a duration from 10ms to 1d",
        "",
    ),
    (
        "limits:\n  head_bytes: 9",
        "config.yaml:2:15: error: expected a size from 1KiB to 1024KiB",
        "",
    ),
    (
        "limits:\n  head_bytes: 64KB",
        "config.yaml:2:15: error: expected a size",
        "",
    ),
    (
        "audit:\n  segmnts: 4",
        "config.yaml:2:3: error: unknown key `segmnts`",
        "did you mean `segments`?",
    ),
    ("- port", "config.yaml:1:1: error: expected a mapping", ""),
    ("port: 1\nport: 2", "config.yaml:2:1: error: ", ""),
    ("port: [", "config.yaml:", ""),
];

#[test]
fn every_fault_has_its_place_and_its_help() {
    for (text, message, help) in FAULTS {
        let faults = parse(text).expect_err(text).to_string();
        assert!(faults.starts_with(message), "{text:?} gave\n{faults}");
        assert!(faults.contains(help), "{text:?} gave\n{faults}");
    }
}

#[test]
fn all_faults_are_reported_at_once() {
    let faults = parse("prot: 1\nmode: on\nworkers: many\n").unwrap_err();
    assert_eq!(faults.len(), 3, "{faults}");
}

#[test]
fn a_missing_file_is_named() {
    let error = Config::load(Some(Path::new("/nonexistent/config.yaml")))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("/nonexistent/config.yaml") && error.contains("--config"),
        "{error}"
    );
}

#[test]
fn vault_is_read() {
    let config = parse(
        "vault: { address: \"https://vault.example:8200\", token_file: /t, mount: /kv/app/, kv: 1, ca: /ca.pem, namespace: team/a, refresh: 5s }\n",
    )
    .unwrap();
    let vault = config.vault.unwrap();
    assert_eq!(vault.address.to_string(), "https://vault.example:8200");
    assert_eq!(vault.token_file, PathBuf::from("/t"));
    assert_eq!((&*vault.mount, vault.kv), ("kv/app", Kv::V1));
    assert_eq!(vault.ca, Some(PathBuf::from("/ca.pem")));
    assert_eq!(vault.namespace.as_deref(), Some("team/a"));
    assert_eq!(vault.refresh, Duration::from_secs(5));
    let few = "vault: { address: \"http://[::1]:8200/\", token_file: /t }\n";
    let vault = parse(few).unwrap().vault.unwrap();
    assert_eq!(vault.address.to_string(), "http://[::1]:8200");
    assert_eq!((&*vault.mount, vault.kv), ("secret", Kv::V2));
    assert_eq!(vault.refresh, Duration::from_secs(60));
}

#[test]
fn what_is_wrong_with_vault_is_told() {
    for (members, message) in [
        ("address: \"https://v\"", "`vault` needs `token_file`"),
        ("token_file: /t", "`vault` needs `address`"),
        (
            "address: vault.example, token_file: /t",
            "does not begin with `https://`",
        ),
        (
            "address: \"http://vault.example\", token_file: /t",
            "would go in clear",
        ),
        (
            "address: \"http://localhost\", token_file: /t",
            "would go in clear",
        ),
        ("address: \"https://v/v1\", token_file: /t", "has a path"),
        (
            "address: \"https://u@v\", token_file: /t",
            "no host and port",
        ),
        (
            "address: \"https://v:x\", token_file: /t",
            "no host and port",
        ),
        ("address: \"https://v\", token_file: t", "absolute path"),
        (
            "address: \"https://v\", token_file: /t, mount: ../x",
            "not a path in Vault",
        ),
        (
            "address: \"https://v\", token_file: /t, namespace: a//b",
            "not a path in Vault",
        ),
        (
            "address: \"https://v\", token_file: /t, kv: 3",
            "expected one of `1`, `2`",
        ),
        (
            "address: \"https://v\", token_file: /t, refresh: 100ms",
            "from 1s to 1d",
        ),
        (
            "address: \"https://v\", token_file: /t, token: x",
            "unknown key `token`",
        ),
    ] {
        let faults = parse(&format!("vault: {{ {members} }}\n")).unwrap_err();
        let told = faults.to_string();
        assert!(told.contains(message), "{members}: {told}");
    }
}

#[test]
fn what_cannot_be_read_is_told_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name| folder.path().join(name);
    std::fs::write(at("binary.yaml"), b"\xff\xfe").unwrap();
    std::fs::write(at("huge.yaml"), vec![b'#'; (1 << 20) + 1]).unwrap();
    for (name, next) in [
        ("binary.yaml", "a configuration is text, in UTF-8"),
        ("huge.yaml", "is it the right file?"),
        ("none.yaml", "name one with --config"),
    ] {
        let told = Config::load(Some(&at(name))).unwrap_err().to_string();
        assert!(told.contains(name) && told.contains(next), "{told}");
    }
}

#[test]
fn the_page_shows_configurations_that_are_good() {
    let page = include_str!("../../../docs/policy.md");
    let blocks = page.split("```yaml configuration\n").skip(1);
    let blocks: Vec<&str> = blocks
        .map(|block| block.split_once("```").unwrap().0)
        .collect();
    let parsed = |block: &&str| parse(block).unwrap_or_else(|faults| panic!("{faults}"));
    let configs: Vec<Config> = blocks.iter().map(parsed).collect();
    let [engines, vault] = &configs[..] else {
        panic!("{configs:?}")
    };
    assert!(vault.vault.is_some());
    let cri = ContainerEngine::Cri("/run/containerd/containerd.sock".into());
    assert_eq!(engines.container_engines.first(), Some(&cri));
    let faults = parse("container_engines: [\"cri:run/c.sock\"]\n").unwrap_err();
    let told = faults.to_string();
    assert!(told.contains("an absolute path behind `cri:`"), "{told}");
}
