//! Nested events from KVM's tracepoints, through a tracefs instance of our own
//! (Linux `arch/x86/kvm/trace.h`, `Documentation/trace/ftrace.rst` "Instances").
//!
//! Read in binary from `per_cpu/cpu*/trace_pipe_raw`, with the layout that the `format` files give:
//! the text form turns exit reasons into names, drops none of the cost, and differs by kernel.

pub mod assemble;
pub mod format;
pub mod ring;

use crate::alarm::thread_id;
use crate::nested::View;
use crate::vcpu::KvmVcpu;
use assemble::{Assembler, Point};
use format::Format;
use nvmx_core::vcpu::{BackendError, NestedEvent, Result};
use ring::{PageLayout, Record};
use std::fs::{self, File};
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

const ROOTS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// The tracepoints: each with the names it has had.
const POINTS: [&[&str]; 4] = [
    &["kvm_nested_vmenter", "kvm_nested_vmrun"],
    &["kvm_nested_vmenter_failed"],
    &["kvm_nested_vmexit"],
    &["kvm_nested_vmexit_inject"],
];

/// KiB of buffer for each CPU: about ten thousand entries and exits.
const BUFFER_KIB: &str = "2048";

/// Where tracefs with KVM's nested tracepoints is; else why there is none and what to do.
pub(crate) fn availability() -> Result<&'static str, String> {
    let exists = |root: &&str| Path::new(root).join("events").exists();
    let Some(root) = ROOTS.iter().copied().find(|root| exists(root)) else {
        return Err(
            "tracefs is not mounted or not readable; as root, `mount -t tracefs nodev \
             /sys/kernel/tracing`"
                .into(),
        );
    };
    for names in POINTS {
        if event_dir(Path::new(root), names).is_none() {
            return Err(format!("this kernel has no tracepoint kvm:{}", names[0]));
        }
    }
    Ok(root)
}

/// The text of a file that gives all of it to its first read and nothing to a second
/// (`show_header`): the standard library's short first read would cut it.
fn read_once(path: &Path) -> Result<String, String> {
    let mut bytes = vec![0; 4096];
    let length = File::open(path)
        .and_then(|mut file| file.read(&mut bytes))
        .map_err(|e| format!("{}: {e}", path.display()))?;
    bytes.truncate(length);
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn event_dir(root: &Path, names: &[&str]) -> Option<PathBuf> {
    names
        .iter()
        .map(|name| root.join("events/kvm").join(name))
        .find(|path| path.join("format").exists())
}

/// A tracefs instance that watches the vCPUs of one VM.
#[derive(Debug)]
pub(crate) struct Tracer {
    instance: PathBuf,
    pipes: Vec<File>,
    layout: PageLayout,
    /// One for each of `POINTS`, in that order.
    formats: Vec<Format>,
    vcpus: Vec<Assembler>,
    /// Whose records come in now, and from which thread.
    owner: usize,
    thread: i32,
    lost: u64,
    page: Vec<u8>,
}

impl Tracer {
    /// Makes the instance and turns the events on.
    pub(crate) fn new(vcpus: usize) -> Result<Self, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let root = Path::new(availability()?);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("instances/nvmx-{}-{number}", std::process::id());
        let instance = root.join(name);
        fs::create_dir(&instance)
            .map_err(|e| format!("{}: {e}; tracing needs root", instance.display()))?;
        let mut tracer = Self {
            instance,
            pipes: Vec::new(),
            layout: PageLayout::usual(),
            formats: Vec::new(),
            vcpus: (0..vcpus).map(|_| Assembler::default()).collect(),
            owner: 0,
            thread: 0,
            lost: 0,
            page: vec![0; 65536],
        };
        // From here on an error removes the instance again, by Drop.
        tracer.set_up(root)?;
        Ok(tracer)
    }

    fn set_up(&mut self, root: &Path) -> Result<(), String> {
        let read = |path: PathBuf| {
            fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))
        };
        let header = read_once(&root.join("events/header_page"))?;
        self.layout = PageLayout::parse(&header)
            .ok_or_else(|| format!("events/header_page reads strangely: {header:?}"))?;
        // A smaller buffer than asked for only loses events sooner, and that is reported.
        let _ = fs::write(self.instance.join("buffer_size_kb"), BUFFER_KIB);
        for names in POINTS {
            let dir = event_dir(&self.instance, names)
                .ok_or_else(|| format!("the instance has no tracepoint kvm:{}", names[0]))?;
            self.formats.push(Format::parse(&read(dir.join("format"))?));
            fs::write(dir.join("enable"), "1")
                .map_err(|e| format!("{}/enable: {e}", dir.display()))?;
        }
        let cpus = self.instance.join("per_cpu");
        let entries = fs::read_dir(&cpus).map_err(|e| format!("{}: {e}", cpus.display()))?;
        for entry in entries.flatten() {
            let path = entry.path().join("trace_pipe_raw");
            let pipe = rustix::fs::open(
                &path,
                rustix::fs::OFlags::RDONLY
                    | rustix::fs::OFlags::NONBLOCK
                    | rustix::fs::OFlags::CLOEXEC,
                rustix::fs::Mode::empty(),
            )
            .map_err(|e| format!("{}: {e}", path.display()))?;
            self.pipes.push(File::from(pipe));
        }
        Ok(())
    }

    /// From now on records are those of vCPU `index`, run by the calling thread.
    fn claim(&mut self, index: usize) -> Result<()> {
        let thread = thread_id();
        if self.owner == index && self.thread == thread {
            return Ok(());
        }
        if self.thread != 0 {
            self.pull()?;
        }
        self.owner = index;
        if self.thread != thread {
            self.thread = thread;
            // Keeps other VMs out of our buffer. Records are checked anyway.
            let _ = fs::write(self.instance.join("set_event_pid"), thread.to_string());
        }
        Ok(())
    }

    /// Reads all there is into the owner's assembler.
    fn pull(&mut self) -> Result<()> {
        let mut records = self.read_records()?;
        // The thread may have moved between CPUs.
        records.sort_by_key(|record| record.time);
        for record in &records {
            if let (Some(point), Some(vcpu)) = (self.point(record), self.vcpus.get_mut(self.owner))
            {
                vcpu.feed(point);
            }
        }
        Ok(())
    }

    fn read_records(&mut self) -> Result<Vec<Record>> {
        let mut records = Vec::new();
        for pipe in &mut self.pipes {
            loop {
                match pipe.read(&mut self.page) {
                    Ok(0) => break,
                    Ok(length) => {
                        // A read gives whole pages of the ring buffer; ours asks for one at a time
                        // at most, since the kernel never crosses a page.
                        let page = self.layout.read(&self.page[..length]);
                        self.lost += page.missed;
                        records.extend(page.records);
                    }
                    Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    Err(e) => return Err(BackendError::Other(format!("trace_pipe_raw: {e}"))),
                }
            }
        }
        Ok(records)
    }

    fn point(&self, record: &Record) -> Option<Point> {
        let data = &record.data[..];
        let id = u16::from_le_bytes([*data.first()?, *data.get(1)?]);
        let kind = self.formats.iter().position(|format| format.id == id)?;
        let format = &self.formats[kind];
        let number = |name| format.number(data, name);
        if number("common_pid")? != self.thread as u64 {
            return None;
        }
        Some(match kind {
            0 => Point::Enter {
                vmcs12: number("vmcb")?,
                l2_rip: number("nested_rip")?,
                injected: number("event_inj")? as u32,
            },
            1 => Point::EnterFailed {
                message: format.string(data, "msg").unwrap_or("").to_owned(),
                error: number("err")? as u32,
            },
            2 => Point::HardwareExit {
                reason: number("exit_reason")? as u32,
                l2_rip: number("guest_rip")?,
            },
            _ => Point::Inject {
                reason: number("exit_code")? as u32,
                qualification: number("exit_info1")?,
                interruption: number("exit_int_info")? as u32,
                error_code: number("exit_int_info_err")? as u32,
            },
        })
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // The kernel removes no instance whose files are open.
        self.pipes.clear();
        for names in POINTS {
            if let Some(dir) = event_dir(&self.instance, names) {
                let _ = fs::write(dir.join("enable"), "0");
            }
        }
        if let Err(error) = fs::remove_dir(&self.instance) {
            tracing::warn!("{} stays behind: {error}", self.instance.display());
        }
    }
}

impl KvmVcpu {
    fn tracer(&self) -> Option<MutexGuard<'_, Tracer>> {
        let tracer: &Mutex<Tracer> = self.shared.tracer.as_ref()?;
        Some(tracer.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// This vCPU is about to run on this thread.
    pub(crate) fn claim_trace(&self) -> Result<()> {
        self.tracer().map_or(Ok(()), |mut t| t.claim(self.index))
    }

    /// Calls `call` and forgets what it traced; what the guest did before stays.
    pub(crate) fn forget_trace<T>(
        &mut self,
        call: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        if let Some(mut tracer) = self.tracer() {
            tracer.claim(self.index)?;
            tracer.pull()?;
        }
        let result = call(self);
        if let Some(mut tracer) = self.tracer() {
            tracer.read_records()?;
            if let Some(vcpu) = tracer.vcpus.get_mut(self.index) {
                vcpu.forget();
            }
        }
        result
    }

    pub(crate) fn drain_trace(&mut self, events: &mut Vec<NestedEvent>) -> Result<()> {
        let Some(mut tracer) = self.tracer() else {
            // Absent by capability: there is nothing, and that is no error.
            return Ok(());
        };
        if tracer.owner == self.index {
            tracer.pull()?;
        }
        let Some(vcpu) = tracer.vcpus.get_mut(self.index) else {
            return Ok(());
        };
        if vcpu.wants_nested_state() {
            vcpu.finish(View(&self.nested_bytes()?));
        }
        events.append(&mut vcpu.take());
        Ok(())
    }

    pub(crate) fn lost_trace_events(&self) -> u64 {
        self.tracer().map_or(0, |mut t| std::mem::take(&mut t.lost))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The real ring buffer: what is written to the instance's marker comes out of its pages.
    #[test]
    fn records_of_this_kernel_are_read_and_losses_counted() {
        let mut tracer = match availability().and_then(|_| Tracer::new(1)) {
            Ok(tracer) => tracer,
            Err(reason) => {
                println!("SKIPPED: {reason}");
                return;
            }
        };
        tracer.claim(0).unwrap();
        let marker = tracer.instance.join("trace_marker");
        let contains = |records: &[Record], text: &str| {
            let found = |r: &&Record| r.data.windows(text.len()).any(|w| w == text.as_bytes());
            records.iter().filter(found).count()
        };
        for text in ["nvmx one", "nvmx two"] {
            fs::write(&marker, text).unwrap();
        }
        let records = tracer.read_records().unwrap();
        assert_eq!(contains(&records, "nvmx one"), 1);
        assert_eq!(contains(&records, "nvmx two"), 1);
        assert!(records.is_sorted_by_key(|r| r.time));
        assert!(tracer.read_records().unwrap().is_empty());
        assert_eq!(tracer.lost, 0);
        // More than the buffers hold.
        let long = "nvmx ".repeat(150);
        let count = 16 * 1024;
        for _ in 0..count {
            fs::write(&marker, &long).unwrap();
        }
        let read = contains(&tracer.read_records().unwrap(), &long);
        assert!(read > 100, "{read}");
        assert!(tracer.lost > 0);
        let instance = tracer.instance.clone();
        drop(tracer);
        assert!(!instance.exists());
    }
}
