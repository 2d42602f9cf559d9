//! The hooks: which program, where, and what is open without it.

/// [`Hook::attach`] of a tracepoint's program: the tracepoint has the program's name.
pub(super) const TRACEPOINT: u32 = u32::MAX;
/// [`Hook::attach`] of a BPF LSM program: the hook has the program's name.
pub(super) const LSM: u32 = u32::MAX - 1;
/// [`Hook::attach`] of a program that the tracepoint of its name passes values to whose types the verifier knows.
pub(super) const TYPED_TRACEPOINT: u32 = u32::MAX - 2;

const SINCE_LSM: Option<&str> =
    Some("BPF LSM among the security modules: boot with `bpf` in `lsm=`");

/// A program and its place: at the cgroup root, a tracepoint, or a security hook.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hook {
    /// The program's name in the object, its link's name, the layer's name.
    pub(super) name: &'static str,
    /// `enum bpf_attach_type`, [`TRACEPOINT`], [`TYPED_TRACEPOINT`] or [`LSM`].
    pub(super) attach: u32,
    /// What it needs of the kernel, where not every one that is supported has it.
    pub(super) since: Option<&'static str>,
    /// Without it something governed gets past that it is there to stop.
    pub(super) holds: bool,
    /// What is not stopped, or not known, without it.
    pub(super) leaves_open: &'static str,
}

impl Hook {
    /// The hook that it is there for where the kernel does not have that one.
    pub(super) fn stands_in_for(&self) -> Option<&'static str> {
        match self.name {
            "unix_stream_connect" => Some("connect_unix"),
            "unix_may_send" => Some("sendmsg_unix"),
            _ => None,
        }
    }
}

/// All hooks, in the order in which they are attached: what recognises comes first, what records before what
/// steers, then what drops whatever was not steered, and the second fence comes last.
pub(super) const HOOKS: &[Hook] = &[
    Hook {
        name: "sched_process_fork",
        attach: TRACEPOINT,
        since: None,
        holds: true,
        leaves_open: "processes made by governed ones, once they have left the governed cgroup; a process with the id of an earlier governed one is taken for it",
    },
    Hook {
        name: "sched_process_exec",
        attach: TRACEPOINT,
        since: None,
        holds: true,
        leaves_open: "programs that are recognised by what they are or by their user, until they connect; a program that the agent's own process becomes",
    },
    Hook {
        name: "cgroup_attach_task",
        attach: TRACEPOINT,
        since: None,
        holds: true,
        leaves_open: "processes that enter a governed cgroup and leave it again",
    },
    Hook {
        name: "cgroup_mkdir",
        attach: TRACEPOINT,
        since: None,
        holds: true,
        leaves_open: "what new cgroups of a workload send before the agent has seen them, which takes milliseconds, or for as long as it is down",
    },
    Hook {
        name: "cgroup_rmdir",
        attach: TRACEPOINT,
        since: None,
        holds: false,
        leaves_open: "nothing passes that should not; cgroups that are gone stay listed until the agent sees it",
    },
    Hook {
        name: "ingress",
        attach: 0,
        since: None,
        holds: true,
        leaves_open: "who takes the agent's port within a connection's first moment is sent what follows; IPv4 broadcasts reach the host's own sockets; connections to ports that the workload may not listen on are made and not answered; bytes and packets received are neither counted nor held to a quota; sockets that ask for names hear others than the agent. Even with it: connections to what a process listened on before it was recognised by its user or executable",
    },
    Hook {
        name: "sock_release",
        attach: 34,
        since: None,
        holds: false,
        leaves_open: "nothing passes that should not; connections whose client has closed them before the agent asked whose they are, are reset",
    },
    Hook {
        name: "getpeername4",
        attach: 29,
        since: None,
        holds: false,
        leaves_open: "nothing passes that should not; the agent cannot tell whose IPv4 connections it accepts and resets them",
    },
    Hook {
        name: "getpeername6",
        attach: 30,
        since: None,
        holds: false,
        leaves_open: "nothing passes that should not; the agent cannot tell whose IPv6 connections it accepts and resets them",
    },
    Hook {
        name: "recvmsg4",
        attach: 19,
        since: None,
        holds: false,
        leaves_open: "nothing passes that should not; IPv4 clients that look who answers their DNS queries see the agent, and may not take its answers",
    },
    Hook {
        name: "recvmsg6",
        attach: 20,
        since: None,
        holds: false,
        leaves_open: "nothing passes that should not; IPv6 clients that look who answers their DNS queries see the agent, and may not take its answers",
    },
    Hook {
        name: "tcp_destroy_sock",
        attach: TYPED_TRACEPOINT,
        since: None,
        holds: false,
        leaves_open: "nothing passes that should not; what a connection moved is not told when it ends",
    },
    Hook {
        name: "sock_create",
        attach: 2,
        since: None,
        holds: true,
        leaves_open: "raw, ICMP, MPTCP and other IP sockets, of which raw ones hear what comes to the host; what they send, where `egress` is missing too. Even with it: sockets that were made outside and passed in, and families other than IP",
    },
    Hook {
        name: "post_bind4",
        attach: 12,
        since: None,
        holds: false,
        leaves_open: "a governed process may take the agent's IPv4 port while no agent runs, which keeps the next one from starting; nobody is steered to it",
    },
    Hook {
        name: "post_bind6",
        attach: 13,
        since: None,
        holds: false,
        leaves_open: "a governed process may take the agent's IPv6 port while no agent runs, which keeps the next one from starting; nobody is steered to it",
    },
    Hook {
        name: "connect_unix",
        attach: 49,
        since: Some("Linux 6.7"),
        holds: true,
        leaves_open: "Unix sockets that a governed process may open: a local daemon (a container engine, D-Bus, a resolver) can be asked to connect in the workload's stead. Even with it: such a socket under a name that the policy allows, where the workload may write the directory",
    },
    Hook {
        name: "sendmsg_unix",
        attach: 50,
        since: Some("Linux 6.7"),
        holds: true,
        leaves_open: "datagrams to Unix sockets that a governed process may open, with a destination of their own",
    },
    Hook {
        name: "sendmsg4",
        attach: 14,
        since: None,
        holds: true,
        leaves_open: "UDP over IPv4 by sendto and sendmsg, on sockets that were made outside and passed in; on the workload's own where `egress` is missing too",
    },
    Hook {
        name: "sendmsg6",
        attach: 15,
        since: None,
        holds: true,
        leaves_open: "UDP over IPv6 by sendto and sendmsg, on sockets that were made outside and passed in; on the workload's own where `egress` is missing too",
    },
    Hook {
        name: "connect4",
        attach: 10,
        since: None,
        holds: true,
        leaves_open: "TCP and connected UDP over IPv4, on sockets that were made outside and passed in; on the workload's own where `egress` is missing too",
    },
    Hook {
        name: "connect6",
        attach: 11,
        since: None,
        holds: true,
        leaves_open: "TCP and connected UDP over IPv6, on sockets that were made outside and passed in; on the workload's own where `egress` is missing too",
    },
    Hook {
        name: "egress",
        attach: 1,
        since: None,
        holds: true,
        leaves_open: "UDP over connected sockets, source routes, what leaves by another device than loopback, answers on ports that the workload may not listen on, and connections and raw sockets from before the workload was governed; bytes and packets sent are neither counted nor held to a quota, and DNS queries are nobody's. Even with it: connected sockets that were made outside and passed in",
    },
    Hook {
        name: "socket_create",
        attach: LSM,
        since: SINCE_LSM,
        holds: true,
        leaves_open: "sockets of families other than IP, Unix and netlink (packet, VSOCK, XDP, PPPOX, RDS, TIPC …), of which some need no privilege and send over IP unseen: under `tollgate run` its seccomp filter stops them; in units, `RestrictAddressFamilies=`",
    },
    Hook {
        name: "ptrace_access_check",
        attach: LSM,
        since: SINCE_LSM,
        holds: true,
        leaves_open: "memory and descriptors of the user's other processes, which are not governed, by ptrace and pidfd_getfd, unless the host forbids it (Yama), and files as those see them (/proc/PID/root), which Yama does not forbid; under `tollgate run`, where Unix sockets are not held either, Landlock stops both",
    },
    Hook {
        name: "task_kill",
        attach: LSM,
        since: SINCE_LSM,
        holds: false,
        leaves_open: "nothing passes that should not; a governed process of root may end the agent, which then denies",
    },
    Hook {
        name: "file_receive",
        attach: LSM,
        since: SINCE_LSM,
        holds: true,
        leaves_open: "connected sockets that were made outside and passed in over a Unix socket, to a workload that is recognised by its cgroup: they are received from. Nothing is sent over them while `socket_sendmsg` is in force",
    },
    Hook {
        name: "socket_sendmsg",
        attach: LSM,
        since: SINCE_LSM,
        holds: true,
        leaves_open: "connected and raw sockets that were made outside and are inherited, or passed in where `file_receive` does not see it. Even with it: what is received over them, and before Linux 6.5 what is sent by sendfile and splice",
    },
    Hook {
        name: "unix_stream_connect",
        attach: LSM,
        since: SINCE_LSM,
        holds: true,
        leaves_open: "Unix sockets that a governed process may open: a local daemon (a container engine, D-Bus, a resolver) can be asked to connect in the workload's stead",
    },
    Hook {
        name: "unix_may_send",
        attach: LSM,
        since: SINCE_LSM,
        holds: true,
        leaves_open: "datagrams to Unix sockets that a governed process may open. Even with it: those over sockets that were connected outside and passed in",
    },
    Hook {
        name: "bpf",
        attach: LSM,
        since: SINCE_LSM,
        holds: true,
        leaves_open: "bpf(2), by which a governed process of root with its capabilities may detach the fence or write its maps; without those capabilities, nothing",
    },
    Hook {
        name: "inode_unlink",
        attach: LSM,
        since: SINCE_LSM,
        holds: true,
        leaves_open: "pins of the fence, which a governed process of root may delete: what is not pinned ends with the agent, or at once",
    },
    Hook {
        name: "inode_rename",
        attach: LSM,
        since: SINCE_LSM,
        holds: true,
        leaves_open: "pins of the fence, which a governed process of root may move away, so that the next agent does not find them",
    },
    Hook {
        name: "sb_umount",
        attach: LSM,
        since: SINCE_LSM,
        holds: true,
        leaves_open: "the file system of the pins, which a governed process of root with its capabilities may unmount, and them with it",
    },
];
