//! The maps, pinned by the agent under their own names, and the few helpers that name them.
use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_F_CLONE, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE, bpf_map_type,
    },
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf},
    cty::c_void,
    helpers::generated::{bpf_sk_storage_delete, bpf_sk_storage_get},
    macros::btf_map,
    programs::{SockAddrContext, SockContext},
};
use tollgate_common::{
    event::{Pending, RefusalKey, Refused},
    flow::{Account, AgentSocket, Asker, Client, Inode, MADE, Path, Port, Query, Steered},
    limits::{
        EVENT_BYTES, MAX_GOVERNED, MAX_KEPT, MAX_LISTEN, MAX_NAMESPACES, MAX_ORPHANS, MAX_PATHS,
        MAX_QUERIES, MAX_SOCKET_NAMES, MAX_STRANGERS, MAX_WORKLOADS,
    },
    openings::{Kept, Listen, Named},
    quota::{Quota, Spent},
    recognise::{
        Arrival, Beyond, CGROUP_NAME, Case, EXE_NAME, Executable, File, MAX_EXECUTABLES,
        MAX_PROCESSES, MAX_RULES, MAX_STEPS, MAX_WAITING, Mark, Rule, Scope, Step, Subtree,
        Waiting,
    },
    settings::{Name, Ports, Settings},
};

const SHARED: usize = BPF_F_MMAPABLE as usize;
const LAZY: usize = BPF_F_NO_PREALLOC as usize;
const CLONED: usize = (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize;

/// What the agent tells the hooks.
#[btf_map]
pub(crate) static SETTINGS: Array<Settings, 1> = Array::new();
/// Where something may be governed.
#[btf_map]
pub(crate) static SCOPE: Array<Scope, 1, SHARED> = Array::new();
/// Cgroup id of a governed subtree's root → what is known of it.
#[btf_map]
pub(crate) static GOVERNED: HashMap<u64, Subtree, { MAX_GOVERNED as usize }, LAZY> = HashMap::new();
/// What `GOVERNED` has no room for.
#[btf_map]
pub(crate) static BEYOND: Array<Beyond, 1, SHARED> = Array::new();
/// Thread-group id → what is known of the process. An entry for every id that there can be.
#[btf_map]
pub(crate) static PROCESSES: Array<Mark, { MAX_PROCESSES as usize }, SHARED> = Array::new();
/// Workload → name; for the agent that comes after this one.
#[btf_map]
pub(crate) static WORKLOADS: HashMap<u32, Name, { MAX_WORKLOADS as usize }, LAZY> = HashMap::new();
/// Cookie of a network namespace → where the agent listens in it.
#[btf_map]
pub(crate) static NAMESPACES: HashMap<u64, Ports, { MAX_NAMESPACES as usize }, LAZY> =
    HashMap::new();
/// Cookie of a network namespace without the agent → when it was last told of it.
#[btf_map]
pub(crate) static STRANGERS: LruHashMap<u64, u64, { MAX_STRANGERS as usize }> = LruHashMap::new();
/// Names that the paths of `STEPS` are made of → their numbers.
#[btf_map]
pub(crate) static NAMES: HashMap<[u8; CGROUP_NAME], u32, { MAX_STEPS as usize }, LAZY> =
    HashMap::new();
/// The paths of cgroups that are governed from their birth on, name by name.
#[btf_map]
pub(crate) static STEPS: HashMap<Step, Arrival, { MAX_STEPS as usize }, LAZY> = HashMap::new();
/// Executables that are known.
#[btf_map]
pub(crate) static EXECUTABLES: HashMap<File, Executable, { MAX_EXECUTABLES as usize }, LAZY> =
    HashMap::new();
/// Names of executables that rules name by their path: any file of such a name is looked at.
#[btf_map]
pub(crate) static EXE_NAMES: HashMap<[u8; EXE_NAME], u32, { MAX_RULES as usize }, LAZY> =
    HashMap::new();
/// By what processes are recognised that are in no governed cgroup.
#[btf_map]
pub(crate) static RULES: HashMap<Case, Rule, { MAX_RULES as usize }, LAZY> = HashMap::new();
/// Programs that were run before they were known.
#[btf_map]
pub(crate) static WAITING: HashMap<u32, Waiting, { MAX_WAITING as usize }, LAZY> = HashMap::new();
/// Where a tracepoint's program puts the names that it reads. Nothing else runs there meanwhile.
#[btf_map]
pub(crate) static ROOM: PerCpuArray<Room, 1> = PerCpuArray::new();
/// Ports that workloads may listen on.
#[btf_map]
pub(crate) static LISTEN: HashMap<Listen, u32, { MAX_LISTEN as usize }, LAZY> = HashMap::new();
/// Unix sockets that workloads may speak to.
#[btf_map]
pub(crate) static UNIX: LpmTrie<Named, u32, { MAX_SOCKET_NAMES as usize }, LAZY> = LpmTrie::new();
/// Cookie of a socket that was connected before its workload was governed → where it may go on sending.
#[btf_map]
pub(crate) static KEPT: HashMap<u64, Kept, { MAX_KEPT as usize }, LAZY> = HashMap::new();
/// What a client's socket carries.
#[btf_map]
pub(crate) static CLIENTS: SocketStorage<Client, LAZY> = SocketStorage::new();
/// What the agent's listeners carry.
#[btf_map]
pub(crate) static AGENT_SOCKETS: SocketStorage<AgentSocket, LAZY> = SocketStorage::new();
/// What a datagram socket carries that a governed task connected to somewhere it may not send to, or
/// any socket of which a packet was dropped.
#[btf_map]
pub(crate) static PENDING: SocketStorage<Pending, LAZY> = SocketStorage::new();
/// Whose a socket was made as, or bound, or is since the agent found it with a process that it governed: the workload, with
/// [`MADE`], and `CLAIMED` where the agent said so; without, where it listens or was accepted by one that does, to which the
/// kernel clones it. A listener's that is its cgroup's may be 0.
#[btf_map]
pub(crate) static ORIGIN: SocketStorage<u64, CLONED> = SocketStorage::new();
/// What a socket carries that the agent accepted and has asked for.
#[btf_map]
pub(crate) static ACCEPTED: SocketStorage<Steered, LAZY> = SocketStorage::new();
/// A client's end → the steered connection that its client has closed before the agent asked for it.
#[btf_map]
pub(crate) static ORPHANS: LruHashMap<Port, Steered, { MAX_ORPHANS as usize }> = LruHashMap::new();
/// Executables → their paths, for a person to read.
#[btf_map]
pub(crate) static PATHS: LruHashMap<Inode, Path, { MAX_PATHS as usize }> = LruHashMap::new();
/// One path of zeros: what an entry of `PATHS` starts from. Never written.
#[btf_map]
pub(crate) static BLANK: Array<Path, 1> = Array::new();
/// What a datagram socket carries that asks for names.
#[btf_map]
pub(crate) static ASKERS: SocketStorage<Asker, LAZY> = SocketStorage::new();
/// Queries that left and that the agent has not read yet; it takes them. The latest are kept, so that nobody fills it with what is
/// never read.
#[btf_map]
pub(crate) static QUERIES: LruHashMap<Query, Asker, { MAX_QUERIES as usize }> = LruHashMap::new();
/// Workload → account.
#[btf_map]
pub(crate) static ACCOUNTS: PerCpuArray<Account, { MAX_WORKLOADS as usize + 1 }> =
    PerCpuArray::new();
/// Workload → not 0: policy has let it go, and what its tasks made is nobody's.
#[btf_map]
pub(crate) static RELEASED: Array<u32, { MAX_WORKLOADS as usize + 1 }> = Array::new();
/// Workload → what it may move in a window.
#[btf_map]
pub(crate) static QUOTAS: Array<Quota, { MAX_WORKLOADS as usize + 1 }> = Array::new();
/// Workload → what it has moved.
#[btf_map]
pub(crate) static SPENT: Array<Spent, { MAX_WORKLOADS as usize + 1 }> = Array::new();
/// Refusals counted.
#[btf_map]
pub(crate) static REFUSALS: HashMap<RefusalKey, u64, { MAX_WORKLOADS as usize * 8 }, LAZY> =
    HashMap::new();
/// Refusals and ends of flows, for the agent; kept while there is none.
#[btf_map]
pub(crate) static EVENTS: RingBuf<Refused, { EVENT_BYTES as usize }> = RingBuf::new();
/// Events that did not fit.
#[btf_map]
pub(crate) static LOST: PerCpuArray<u64, 1> = PerCpuArray::new();

/// A value of `ROOM`.
#[repr(C)]
pub(crate) struct Room {
    /// A cgroup's name, zeros behind it.
    pub(crate) name: [u8; CGROUP_NAME],
    /// An executable's, zeros behind it.
    pub(crate) exe: [u8; EXE_NAME],
    /// The numbers of the names of a path, by their level.
    pub(crate) numbers: [u32; 32],
    /// The level of the cgroup that is being made.
    pub(crate) level: u32,
    /// Digits that follow each other, where they are counted.
    pub(crate) digits: u32,
    /// 1: all names but the last end in `.slice`.
    pub(crate) slices: u32,
    /// Explicit padding.
    pub(crate) reserved: u32,
    /// What the path says.
    pub(crate) found: Arrival,
}

/// Socket storage with flags: aya's own type has none, and cannot be used outside `sock_addr`.
#[repr(C)]
pub(crate) struct SocketStorage<T, const FLAGS: usize> {
    r#type: *const [i32; bpf_map_type::BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; FLAGS],
}

// SAFETY: needed for a static. The fields are placeholders for the loader and never dereferenced.
unsafe impl<T, const FLAGS: usize> Sync for SocketStorage<T, FLAGS> {}

// A value belongs to its socket, not to the map's handle; each hook holds one reference at a time.
#[allow(clippy::mut_from_ref)]
impl<T, const FLAGS: usize> SocketStorage<T, FLAGS> {
    const fn new() -> Self {
        Self {
            r#type: core::ptr::null(),
            key: core::ptr::null(),
            value: core::ptr::null(),
            max_entries: core::ptr::null(),
            map_flags: core::ptr::null(),
        }
    }

    #[inline(always)]
    fn map(&self) -> *mut c_void {
        core::ptr::from_ref(self).cast_mut().cast()
    }

    /// What `socket` carries. `socket` is whatever the program type's helper takes: a socket
    /// pointer, or for `cgroup/sock_*` the context. The verifier checks that it is.
    #[inline(always)]
    pub(crate) fn of(&self, socket: *mut c_void) -> Option<&mut T> {
        // SAFETY: needed to call a helper. It returns null or the socket's own value, which lives
        // while the program runs; the verifier refuses any other use.
        unsafe {
            bpf_sk_storage_get(self.map(), socket, core::ptr::null_mut(), 0)
                .cast::<T>()
                .as_mut()
        }
    }

    /// What `socket` carries, zeroed if it carried nothing; `None` if there is no memory.
    #[inline(always)]
    pub(crate) fn of_or_new(&self, socket: *mut c_void) -> Option<&mut T> {
        let create = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
        // SAFETY: as in `of`.
        unsafe {
            bpf_sk_storage_get(self.map(), socket, core::ptr::null_mut(), create)
                .cast::<T>()
                .as_mut()
        }
    }

    /// Takes it away from the hook's socket.
    #[inline(always)]
    pub(crate) fn forget(&self, ctx: &SockAddrContext) {
        // SAFETY: needed to call a helper, with the socket that the kernel passed.
        unsafe { bpf_sk_storage_delete(self.map(), socket_of(ctx)) };
    }
}

/// Enters whose the hook's socket is, unless that is known. `None`: there is no memory.
#[inline(always)]
pub(crate) fn make(ctx: &SockContext, workload: u32) -> Option<()> {
    let origin = ORIGIN.of_or_new(ctx.as_ptr())?;
    if *origin == 0 {
        *origin = MADE | u64::from(workload);
    }
    Some(())
}

/// What a client's socket carries, if it is somebody's; `socket` as in [`SocketStorage::of`].
#[inline(always)]
pub(crate) fn client_of(socket: *mut c_void) -> Option<&'static mut Client> {
    CLIENTS.of(socket).filter(|client| client.workload != 0)
}

/// The socket that an address hook is about.
#[inline(always)]
pub(crate) fn socket_of(ctx: &SockAddrContext) -> *mut c_void {
    // SAFETY: the context is valid while the program runs and `sk` is the only member of the union.
    unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk.cast() }
}

/// The cookie of the socket that an address hook is about.
#[inline(always)]
pub(crate) fn cookie_of(ctx: &SockAddrContext) -> u64 {
    // SAFETY: needed to call a helper, with the context that the kernel passed.
    unsafe { aya_ebpf::helpers::generated::bpf_get_socket_cookie(ctx.as_ptr()) }
}
