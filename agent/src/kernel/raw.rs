//! Loads programs for hooks that aya has no type for: relocated as aya does it, and given to the kernel as what
//! they are.
use super::{Error, pins::Pins, sys};
use aya::Ebpf;
use aya::maps::{Map, MapData};
use aya_obj::Object;
use std::collections::HashSet;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// The object's programs, on the maps that aya made or opened.
pub(super) struct Raw {
    object: Object,
    license: CString,
}

impl Raw {
    /// Relocates the programs of `bytes`, which `ebpf` was loaded from.
    pub(super) fn relocate(bytes: &[u8], ebpf: &Ebpf, pins: &Pins) -> Result<Self, Error> {
        let failed = |error: String| Error::Relocate {
            path: pins.dir().to_owned(),
            error,
        };
        let mut object = Object::parse(bytes).map_err(|e| failed(e.to_string()))?;
        let maps: Vec<(String, aya_obj::Map)> = object.maps.drain().collect();
        let mut open = Vec::with_capacity(maps.len());
        for (name, map) in &maps {
            let fd = ebpf.map(name).and_then(descriptor);
            let fd = fd.ok_or_else(|| failed(format!("no map {name}")))?;
            open.push((name.as_str(), fd.as_raw_fd(), map));
        }
        let sections: HashSet<usize> = object.functions.keys().map(|(index, _)| *index).collect();
        object
            .relocate_maps(open.into_iter(), &sections)
            .and_then(|()| object.relocate_calls(&sections))
            .map_err(|e| failed(e.to_string()))?;
        let license = object.license.clone();
        Ok(Self { object, license })
    }

    /// Loads the program called `name` for hooks of `attach` on socket addresses. `types`: what the kernel was told of the
    /// object's types, by which it knows the functions that loops call.
    pub(super) fn load(
        &self,
        name: &'static str,
        attach: u32,
        types: &OwnedFd,
    ) -> io::Result<(OwnedFd, u32)> {
        let program = self.object.programs.get(name);
        let function = program.and_then(|p| self.object.functions.get(&p.function_key()));
        let function = function.ok_or(io::ErrorKind::NotFound)?;
        let records = function.func_info.func_info_bytes();
        let functions = sys::Functions {
            types: types.as_fd(),
            records: &records,
            size: function.func_info_rec_size,
        };
        let code = &function.instructions;
        let program = sys::load_sock_addr(name, code, &self.license, attach, &functions)?;
        let id = sys::program_id(&program)?;
        Ok((program, id))
    }
}

/// The kinds of maps that the object has.
pub(super) fn descriptor(map: &Map) -> Option<BorrowedFd<'_>> {
    let data: &MapData = match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LpmTrie(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::PerCpuHashMap(data)
        | Map::RingBuf(data)
        | Map::SkStorage(data)
        | Map::Unsupported(data) => data,
        _ => return None,
    };
    Some(data.fd().as_fd())
}
