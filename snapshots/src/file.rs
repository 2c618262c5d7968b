//! Snapshots as files: a path ending in `.bin` holds the kernel's raw `kvm_nested_state`, any other
//! our text, with guest memory in a `.pages` file of the same name beside it.

use crate::atomic;
use crate::document::{self, MemoryDoc};
use crate::error::{Error, Result};
use crate::hex::Hex;
use crate::limits::Limits;
use crate::model::Snapshot;
use crate::pages::PageStore;
use crate::pages_file;
use nvmx_core::nested::NestedState;
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

/// Whether a path means the kernel's raw bytes.
#[must_use]
pub fn is_raw(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "bin")
}

/// Reads a snapshot of either kind.
pub fn load(path: &Path) -> Result<Snapshot> {
    load_within(path, &Limits::default())
}

/// Reads a snapshot with other limits.
pub fn load_within(path: &Path, limits: &Limits) -> Result<Snapshot> {
    if is_raw(path) {
        return from_raw(path, &read_capped(path, limits.raw)?);
    }
    load_text(path, limits, 0)
}

/// A snapshot from the kernel's bytes; `path` is for messages.
pub fn from_raw(path: &Path, bytes: &[u8]) -> Result<Snapshot> {
    NestedState::from_bytes(bytes)
        .map(Snapshot::of_nested)
        .map_err(|e| Error::content(path, "kvm_nested_state", e.to_string()))
}

/// A snapshot from a text, without its memory; `path` is for messages.
pub fn from_text(path: &Path, text: &str) -> Result<Snapshot> {
    document::from_text(text)
        .map(|(snapshot, _)| snapshot)
        .map_err(|e| Error::content(path, e.place, e.reason))
}

fn load_text(path: &Path, limits: &Limits, depth: usize) -> Result<Snapshot> {
    let bytes = read_capped(path, limits.text)?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::content(
            path,
            format!("byte {at}"),
            "not text, so no snapshot of ours; raw kernel bytes need a name ending in .bin",
        )
    })?;
    let (mut snapshot, memory) =
        document::from_text(&text).map_err(|e| Error::content(path, e.place, e.reason))?;
    if let Some(memory) = memory {
        snapshot.memory = Some(load_memory(path, &memory, limits, depth)?);
    }
    Ok(snapshot)
}

fn load_memory(
    path: &Path,
    memory: &MemoryDoc,
    limits: &Limits,
    depth: usize,
) -> Result<PageStore> {
    let pages_path = beside(path, "memory.pages", &memory.pages)?;
    let pages = pages_file::read(&pages_path, limits)?;
    if u64::from(pages.identity) != memory.identity.0 {
        let reason = format!(
            "{} is another file than the one this snapshot was written with ({:#x}, not {:#x})",
            pages_path.display(),
            pages.identity,
            memory.identity.0
        );
        return Err(Error::content(path, "memory.identity", reason));
    }
    let size = pages.store.memory_size();
    if size != memory.size.0 {
        let reason = format!("{:#x}, but the page file has {size:#x}", memory.size.0);
        return Err(Error::content(path, "memory.size", reason));
    }
    match (&memory.base, pages.zeroed.is_some()) {
        (None, false) => Ok(pages.store),
        (Some(base), true) => {
            if depth >= limits.bases {
                let reason = format!("more than {} snapshots stand on each other", limits.bases);
                return Err(Error::content(path, "memory.base", reason));
            }
            let base_path = beside(path, "memory.base", base)?;
            let base = load_text(&base_path, limits, depth + 1)?.memory;
            match base {
                Some(base) if base.memory_size() == size => Ok(pages.onto(&base)),
                _ => Err(Error::content(
                    path,
                    "memory.base",
                    format!("{} has no memory of the same size", base_path.display()),
                )),
            }
        }
        (None, true) => Err(Error::content(
            path,
            "memory.base",
            "missing, but the page file is a delta",
        )),
        (Some(_), false) => Err(Error::content(
            path,
            "memory.base",
            "there, but the page file holds all of memory",
        )),
    }
}

/// A file named in a snapshot: in the same folder, never elsewhere.
fn beside(path: &Path, field: &str, name: &str) -> Result<PathBuf> {
    let mut parts = Path::new(name).components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(_)), None) => Ok(path.with_file_name(name)),
        _ => Err(Error::content(
            path,
            field,
            format!("{name:?}: the plain name of a file in the same folder is expected"),
        )),
    }
}

fn read_capped(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let failed = |source| Error::io(path, "read", source);
    let file = File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > limit {
        return Err(Error::TooLarge {
            path: path.to_owned(),
            size: path.metadata().map_or(limit + 1, |m| m.len()),
            limit,
        });
    }
    Ok(bytes)
}

/// The text of a snapshot without memory.
pub fn to_text(snapshot: &Snapshot) -> Result<String> {
    document::to_text(snapshot, None).map_err(|e| Error::Unfit(e.to_string()))
}

/// Writes a snapshot of either kind, whole or not at all. To `.bin` goes the nested state alone.
pub fn save(path: &Path, snapshot: &Snapshot) -> Result<()> {
    save_onto(path, snapshot, None)
}

/// As [`save`]; with a base (its path, and what it holds) memory is written as what differs from
/// it. The base must stand in the same folder.
pub fn save_onto(path: &Path, snapshot: &Snapshot, base: Option<(&Path, &Snapshot)>) -> Result<()> {
    if is_raw(path) {
        let bytes = raw_of(snapshot).map_err(|reason| Error::content(path, "write", reason))?;
        return atomic::write(path, |w| w.write_all(&bytes));
    }
    let memory = match &snapshot.memory {
        Some(memory) => Some(save_memory(path, memory, base)?),
        None => None,
    };
    let text = document::to_text(snapshot, memory).map_err(|e| Error::Unfit(e.to_string()))?;
    atomic::write(path, |w| w.write_all(text.as_bytes()))
}

fn save_memory(
    path: &Path,
    memory: &PageStore,
    base: Option<(&Path, &Snapshot)>,
) -> Result<MemoryDoc> {
    let pages_path = path.with_extension("pages");
    if pages_path == path {
        let reason = "a snapshot's text cannot end in .pages: its memory goes there";
        return Err(Error::content(path, "name", reason));
    }
    let name = |path: &Path| path.file_name().map(|n| n.to_string_lossy().into_owned());
    let base = match base {
        Some((base_path, base)) => {
            if base_path.parent() != path.parent() {
                let reason = format!("the base {} is in another folder", base_path.display());
                return Err(Error::content(path, "memory.base", reason));
            }
            base.memory
                .as_ref()
                .filter(|base| base.memory_size() == memory.memory_size())
                .and_then(|base| Some((name(base_path)?, base)))
        }
        None => None,
    };
    let identity = pages_file::write(&pages_path, memory, base.as_ref().map(|(_, base)| *base))?;
    Ok(MemoryDoc {
        size: Hex(memory.memory_size()),
        pages: name(&pages_path).unwrap_or_default(),
        identity: Hex(identity.into()),
        base: base.map(|(name, _)| name),
    })
}

/// The kernel's bytes of the one vCPU that has nested state.
fn raw_of(snapshot: &Snapshot) -> Result<Vec<u8>, String> {
    let mut nested = snapshot
        .vcpus
        .iter()
        .filter_map(|vcpu| vcpu.nested.as_ref());
    match (nested.next(), nested.next()) {
        (Some(one), None) => Ok(one.to_bytes()),
        (None, _) => Err("the snapshot holds no nested state to write as raw bytes".into()),
        (Some(_), Some(_)) => Err(
            "the snapshot has nested state of several vCPUs, a .bin file holds that of one".into(),
        ),
    }
}
