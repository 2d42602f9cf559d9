//! The hooks: which program, where, and what is open without it.

/// [`Hook::attach`] of a tracepoint's program: the tracepoint has the program's name.
pub(super) const TRACEPOINT: u32 = u32::MAX;

/// A program and its place at the cgroup root, or its tracepoint.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hook {
    /// The program's name in the object, its link's name, the layer's name.
    pub(super) name: &'static str,
    /// `enum bpf_attach_type`, or [`TRACEPOINT`].
    pub(super) attach: u32,
    /// What is not stopped, or not known, without it.
    pub(super) leaves_open: &'static str,
}

/// All hooks, in the order in which they are attached: what recognises comes first, what records before what
/// steers, and what drops whatever was not steered comes last.
pub(super) const HOOKS: &[Hook] = &[
    Hook {
        name: "sched_process_fork",
        attach: TRACEPOINT,
        leaves_open: "processes made by governed ones, once they have left the governed cgroup; a process with the id of an earlier governed one is taken for it",
    },
    Hook {
        name: "sched_process_exec",
        attach: TRACEPOINT,
        leaves_open: "programs that are recognised by what they are or by their user, until they connect; a program that the agent's own process becomes",
    },
    Hook {
        name: "cgroup_attach_task",
        attach: TRACEPOINT,
        leaves_open: "processes that enter a governed cgroup and leave it again",
    },
    Hook {
        name: "cgroup_mkdir",
        attach: TRACEPOINT,
        leaves_open: "what new cgroups of a workload send before the agent has seen them, which takes milliseconds, or for as long as it is down",
    },
    Hook {
        name: "cgroup_rmdir",
        attach: TRACEPOINT,
        leaves_open: "nothing passes that should not; cgroups that are gone stay listed until the agent sees it",
    },
    Hook {
        name: "ingress",
        attach: 0,
        leaves_open: "nothing passes that should not; bytes and packets received are not counted",
    },
    Hook {
        name: "sock_release",
        attach: 34,
        leaves_open: "nothing passes that should not; flows that failed to connect stay listed until their socket is used again",
    },
    Hook {
        name: "getpeername4",
        attach: 29,
        leaves_open: "nothing passes that should not; IPv4 clients see the agent's address as their peer",
    },
    Hook {
        name: "getpeername6",
        attach: 30,
        leaves_open: "nothing passes that should not; IPv6 clients see the agent's address as their peer",
    },
    Hook {
        name: "sock_ops",
        attach: 3,
        leaves_open: "nothing passes that should not; the agent cannot tell whose connections it accepts and resets them",
    },
    Hook {
        name: "sock_create",
        attach: 2,
        leaves_open: "raw, ICMP, MPTCP and other IP sockets. Even with it: sockets that were made outside and passed in, and families other than IP",
    },
    Hook {
        name: "sendmsg4",
        attach: 14,
        leaves_open: "UDP over IPv4 by sendto and sendmsg, on sockets that were made outside and passed in; on the workload's own where `egress` is missing too",
    },
    Hook {
        name: "sendmsg6",
        attach: 15,
        leaves_open: "UDP over IPv6 by sendto and sendmsg, on sockets that were made outside and passed in; on the workload's own where `egress` is missing too",
    },
    Hook {
        name: "connect4",
        attach: 10,
        leaves_open: "TCP and connected UDP over IPv4, on sockets that were made outside and passed in; on the workload's own where `egress` is missing too",
    },
    Hook {
        name: "connect6",
        attach: 11,
        leaves_open: "TCP and connected UDP over IPv6, on sockets that were made outside and passed in; on the workload's own where `egress` is missing too",
    },
    Hook {
        name: "egress",
        attach: 1,
        leaves_open: "UDP over connected sockets, source routes, and connections and raw sockets from before the workload was governed; bytes and packets sent are not counted. Even with it: answers on connections that others made to the workload, and connected sockets that were made outside and passed in",
    },
];

/// Layers that this version does not have: name, and what that leaves open.
pub(super) const MISSING: &[(&str, &str)] = &[
    (
        "bind",
        "a governed process may bind and listen, and answer whoever connects to it",
    ),
    (
        "connect_unix",
        "unix sockets are not looked at: a local daemon can be asked to connect in the workload's stead",
    ),
    (
        "families",
        "packet, vsock, XDP and other families are not looked at by these hooks; the launcher's seccomp filter is what stops them",
    ),
    ("lsm", "ptrace and signals are not looked at by these hooks"),
];
