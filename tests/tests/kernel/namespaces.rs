//! Other network namespaces: refused until the agent listens in them, then steered like its own.
use crate::refuse::{counted, events};
use crate::support::*;
use std::net::TcpListener;
use tollgate::kernel::Event;
use tollgate::kernel::namespaces::Network;

/// A governed process in a network namespace of its own. For each address that it is sent it connects there and says
/// what came of it.
fn stranger(stand: &Stand) -> Running {
    let mut client = Running::start(
        &stand.cgroup,
        "import ctypes
if ctypes.CDLL(None).unshare(0x40000000) != 0: sys.exit('no namespace')
say('in')
for line in sys.stdin:
    ip, port = line.split(); say(tcp(ip, int(port))[1])",
    );
    assert_eq!(client.line(), "in");
    client
}

fn connects(client: &mut Running, ip: &str) -> String {
    connects_to(client, ip, 443)
}

fn connects_to(client: &mut Running, ip: &str, port: u16) -> String {
    client.send(&format!("{ip} {port}\n"));
    client.line()
}

fn network(client: &Running) -> Network {
    Network::of(client.pid(), client.pid()).unwrap()
}

/// Listeners in a namespace.
fn listeners(network: &Network) -> (TcpListener, TcpListener) {
    network
        .within(|| Ok((listen("127.0.0.1:0"), listen("[::1]:0"))))
        .unwrap()
}

#[test]
fn another_namespace_is_refused_until_the_agent_listens_in_it() {
    let mut stand = Stand::new();
    let mut client = stranger(&stand);
    let destinations = ["198.51.100.7", "2001:db8::7"];
    for ip in destinations {
        assert_eq!(connects(&mut client, ip), "ECONNREFUSED");
    }
    let told = events(stand.fence(), |events| events.len() >= 3);
    let strangers: Vec<u32> = told
        .iter()
        .filter_map(|event| match event {
            Event::Stranger { pid, workload } => {
                assert_eq!(&**workload, stand.workload());
                Some(*pid)
            }
            _ => None,
        })
        .collect();
    assert!(
        !strangers.is_empty() && strangers.iter().all(|pid| *pid == client.pid()),
        "{told:?}"
    );
    assert_eq!(counted(&stand)["namespace"], 2);

    let network = network(&client);
    let (four, six) = listeners(&network);
    for ip in destinations {
        let came = connects(&mut client, ip);
        assert_eq!(came, "ECONNREFUSED", "{ip}: listening is not enough");
    }
    let cookie = stand
        .fence()
        .admit(&[&four, &six], port(&four), Some(port(&six)))
        .unwrap();
    for (ip, listener) in destinations.into_iter().zip([&four, &six]) {
        assert_eq!(connects(&mut client, ip), "ok");
        let flow = stand.fence().flow_of(&stand.accept(listener)).unwrap();
        assert_eq!(&*flow.workload, stand.workload());
        assert_eq!(flow.destination.ip().to_string(), ip);
        assert_eq!(flow.process.pid, client.pid());
    }
    // The agent's own is what it was.
    for ip in destinations {
        assert_eq!(stand.run(&format!("say(tcp('{ip}', 443)[1])")), "ok");
        stand.accept(stand.agent(ip));
    }

    stand.fence().retire(cookie).unwrap();
    for ip in destinations {
        assert_eq!(connects(&mut client, ip), "ECONNREFUSED");
    }
    assert_quiet(&four);
    assert_quiet(&six);
    stand.lift();
    for ip in destinations {
        // A lift is over a moment later on newer kernels.
        eventually("nobody refuses it", || {
            connects(&mut client, ip) == "ENETUNREACH"
        });
    }
    drop(client);
}

/// Somebody else listens where the agent did: no tag, no connection. And ports are each namespace's own.
#[test]
fn an_impostor_in_another_namespace_gets_nothing() {
    let mut stand = Stand::new();
    let mut client = stranger(&stand);
    let network = network(&client);
    let (four, six) = listeners(&network);
    let (port4, port6) = (port(&four), port(&six));
    stand
        .fence()
        .admit(&[&four, &six], port4, Some(port6))
        .unwrap();
    assert_eq!(connects(&mut client, "198.51.100.7"), "ok");
    drop((stand.accept(&four), four, six));
    let impostors = network
        .within(|| {
            Ok((
                listen(&format!("127.0.0.1:{port4}")),
                listen(&format!("[::1]:{port6}")),
            ))
        })
        .unwrap();
    for ip in ["198.51.100.7", "2001:db8::7"] {
        assert_eq!(connects(&mut client, ip), "ECONNREFUSED");
    }
    assert_quiet(&impostors.0);
    assert_quiet(&impostors.1);
    assert_eq!(counted(&stand)["agent_down"], 2);
    let straight = [("127.0.0.1", port4), ("::1", port6)];
    for (ip, port) in straight {
        assert_eq!(connects_to(&mut client, ip, port), "EPERM");
    }
    stand.lift();
    for ((ip, port), impostor) in straight.into_iter().zip([&impostors.0, &impostors.1]) {
        // A lift is over a moment later on newer kernels.
        eventually("it is lifted", || {
            connects_to(&mut client, ip, port) == "ok"
        });
        accept(impostor);
    }
}

/// What an earlier agent listened in and this one does not is told of again.
#[test]
fn a_next_agent_is_told_of_namespaces_again() {
    let mut stand = Stand::new();
    let mut client = stranger(&stand);
    let network = network(&client);
    let (four, six) = listeners(&network);
    stand
        .fence()
        .admit(&[&four, &six], port(&four), Some(port(&six)))
        .unwrap();
    drop((stand.fence.take(), four, six));
    let mut is_refused = || {
        for ip in ["198.51.100.7", "2001:db8::7"] {
            assert_eq!(connects(&mut client, ip), "ECONNREFUSED");
        }
    };
    is_refused();
    stand.fence = Some(open(&stand.options));
    stand.admit();
    stand.fence().forget_namespaces().unwrap();
    is_refused();
    events(stand.fence(), |events| {
        events
            .iter()
            .any(|event| matches!(event, Event::Stranger { pid, .. } if *pid == client.pid()))
    });
    stand.lift();
    for ip in ["198.51.100.7", "2001:db8::7"] {
        eventually("nobody refuses it", || {
            connects(&mut client, ip) == "ENETUNREACH"
        });
    }
}

/// Where there is no room for one more namespace, its connections are refused, and others are served.
#[test]
fn a_namespace_that_there_is_no_room_for_stays_refused() {
    let mut stand = Stand::new();
    let mut client = stranger(&stand);
    fill(&stand, "NAMESPACES");
    let network = network(&client);
    let (four, six) = listeners(&network);
    let admitted = stand
        .fence()
        .admit(&[&four, &six], port(&four), Some(port(&six)));
    let error = admitted.unwrap_err().to_string();
    assert!(error.contains("NAMESPACES"), "{error}");
    for ip in ["198.51.100.7", "2001:db8::7"] {
        assert_eq!(connects(&mut client, ip), "ECONNREFUSED");
    }
    assert_quiet(&four);
    assert_quiet(&six);
    for (ip, agent) in [
        ("198.51.100.7", &stand.agent4),
        ("2001:db8::7", &stand.agent6),
    ] {
        assert_eq!(stand.run(&format!("say(tcp('{ip}', 443)[1])")), "ok");
        stand.accept(agent);
    }
    stand.lift();
    for ip in ["198.51.100.7", "2001:db8::7"] {
        eventually("nobody refuses it", || {
            connects(&mut client, ip) == "ENETUNREACH"
        });
    }
}
