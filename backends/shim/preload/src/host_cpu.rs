//! What the program itself sees of the processor. CPUID is no call that could be put before the C library's, so the
//! program's own CPUID instructions are replaced as it is loaded, and a signal handler answers for them.
//!
//! A program of KVM asks the host's processor which KVM there is: on AMD's it reads kvm_amd's parameters and lets its
//! guest say VMMCALL. The processor that is offered is another, and the same wherever the shim runs. Told are vendor,
//! signature, what the system level has (VMX, MONITOR, counters), all from the profile; what user code may execute is
//! the host's. Only the program's own text is touched, not that of its libraries; what it reads of its file is as it was.

use crate::shim;
use iced_x86::{Code, Decoder, DecoderOptions, Instruction};
use nvmx_core::profiles::Profile;
use std::arch::x86_64::{__cpuid_count, CpuidResult};
use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::OnceLock;

/// CPUID, and UD2, which takes its place.
const CPUID: [u8; 2] = [0x0f, 0xa2];
const UD2: [u8; 2] = [0x0f, 0x0b];

/// What the handler knows.
struct Replaced {
    /// Addresses of the replaced instructions, in their order.
    at: Vec<usize>,
    /// Whose handler ours replaced.
    before: libc::sigaction,
    profile: &'static Profile,
}

static REPLACED: OnceLock<Replaced> = OnceLock::new();

/// The loader calls it before the program's own constructors.
#[cfg(not(test))]
#[used]
#[unsafe(link_section = ".init_array")]
static LOADED: extern "C" fn() = loaded;

#[cfg_attr(test, expect(dead_code))]
extern "C" fn loaded() {
    let mut text: Vec<(usize, usize)> = Vec::new();
    // SAFETY: the callback takes what the loader gives it, and `text` outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(program_text), (&raw mut text).cast()) };
    let mut at = Vec::new();
    for &(start, length) in &text {
        // SAFETY: a segment of the program that is loaded to be read and executed, and nobody runs in it yet.
        let bytes = unsafe { std::slice::from_raw_parts(start as *const u8, length) };
        at.extend(instructions(bytes).map(|offset| start + offset));
    }
    if at.is_empty() {
        return;
    }
    // SAFETY: all zeroes is a valid value of this C structure.
    let (mut action, mut before): (libc::sigaction, libc::sigaction) =
        unsafe { std::mem::zeroed() };
    action.sa_sigaction = undefined as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: both point to such a structure.
    if unsafe { libc::sigaction(libc::SIGILL, &raw const action, &raw mut before) } != 0 {
        return;
    }
    let replaced = REPLACED.get_or_init(|| Replaced {
        at,
        before,
        profile: shim().settings().profile,
    });
    for &address in &replaced.at {
        // SAFETY: two bytes of the program's text, which are a CPUID.
        unsafe { write_text(address, UD2) };
    }
}

/// Adds the executable segments of the first object, which is the program, and ends the walk.
///
/// # Safety
/// Called by dl_iterate_phdr with a pointer to a vector of (address, length).
unsafe extern "C" fn program_text(
    info: *mut libc::dl_phdr_info,
    _: usize,
    data: *mut c_void,
) -> c_int {
    // SAFETY: the loader's structure, and the caller's vector.
    let (info, text) = unsafe { (&*info, &mut *data.cast::<Vec<(usize, usize)>>()) };
    for index in 0..usize::from(info.dlpi_phnum) {
        // SAFETY: the table has so many entries.
        let header = unsafe { &*info.dlpi_phdr.add(index) };
        if header.p_type == libc::PT_LOAD
            && header.p_flags & libc::PF_X != 0
            && header.p_flags & libc::PF_R != 0
        {
            text.push((
                (info.dlpi_addr + header.p_vaddr) as usize,
                header.p_filesz as usize,
            ));
        }
    }
    1
}

/// Where CPUID instructions are in a text. Bytes of one within another instruction are none.
fn instructions(text: &[u8]) -> impl Iterator<Item = usize> {
    let any = text.windows(2).any(|pair| pair == CPUID);
    let mut decoder = Decoder::new(64, if any { text } else { &[] }, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    std::iter::from_fn(move || {
        while decoder.can_decode() {
            let at = decoder.position();
            decoder.decode_out(&mut instruction);
            if instruction.code() == Code::Cpuid && instruction.len() == CPUID.len() {
                return Some(at);
            }
        }
        None
    })
}

/// # Safety
/// The bytes are the program's text.
unsafe fn write_text(address: usize, bytes: [u8; 2]) {
    let page = 4096;
    let start = address & !(page - 1);
    let length = (address + bytes.len()).next_multiple_of(page) - start;
    let (all, text) = (
        libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
        libc::PROT_READ | libc::PROT_EXEC,
    );
    // SAFETY: the pages are the program's text, and private to this process; they end as executable as they were.
    unsafe {
        if libc::mprotect(start as *mut c_void, length, all) == 0 {
            ptr::write_volatile(address as *mut [u8; 2], bytes);
            libc::mprotect(start as *mut c_void, length, text);
        }
    }
}

/// The handler of SIGILL: answers for CPUID, and leaves all else to whoever was there before.
extern "C" fn undefined(signal: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel hands a handler with SA_SIGINFO the interrupted thread's context.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let (rax, rbx, rcx, rdx, rip) = (
        libc::REG_RAX as usize,
        libc::REG_RBX as usize,
        libc::REG_RCX as usize,
        libc::REG_RDX as usize,
        libc::REG_RIP as usize,
    );
    let replaced = REPLACED.get();
    let here = registers[rip] as usize;
    let ours = replaced.filter(|replaced| replaced.at.binary_search(&here).is_ok());
    if let Some(replaced) = ours {
        let answer = answer(
            replaced.profile,
            registers[rax] as u32,
            registers[rcx] as u32,
        );
        registers[rax] = answer.eax.into();
        registers[rbx] = answer.ebx.into();
        registers[rcx] = answer.ecx.into();
        registers[rdx] = answer.edx.into();
        registers[rip] += CPUID.len() as i64;
        return;
    }
    // Somebody else's: as if we were not here. The instruction runs into it again.
    // SAFETY: what the kernel gave us, or the default where nothing was given; both are valid for it.
    unsafe {
        let default: libc::sigaction = std::mem::zeroed();
        let before = replaced.map_or(&default, |replaced| &replaced.before);
        libc::sigaction(signal, before, ptr::null_mut());
    }
}

/// CPUID as the program sees it.
fn answer(profile: &Profile, leaf: u32, subleaf: u32) -> CpuidResult {
    /// VMX and MONITOR of leaf 1's ECX.
    const SYSTEM_1_ECX: u32 = 1 << 5 | 1 << 3;
    /// SVM of leaf 8000_0001H's ECX.
    const SVM: u32 = 1 << 2;
    let theirs = |leaf: u32, subleaf: u32| {
        let row = profile
            .cpuid
            .iter()
            .find(|row| row.leaf == leaf && (row.subleaf == subleaf || !row.subleaf_significant));
        row.map_or(
            CpuidResult {
                eax: 0,
                ebx: 0,
                ecx: 0,
                edx: 0,
            },
            |row| CpuidResult {
                eax: row.eax,
                ebx: row.ebx,
                ecx: row.ecx,
                edx: row.edx,
            },
        )
    };
    let mut host = __cpuid_count(leaf, subleaf);
    match leaf {
        0 => {
            let theirs = theirs(0, 0);
            (host.ebx, host.ecx, host.edx) = (theirs.ebx, theirs.ecx, theirs.edx);
            // Leaf 0AH is the profile's.
            host.eax = host.eax.max(0xa);
        }
        1 => {
            host.eax = theirs(1, 0).eax;
            host.ecx |= SYSTEM_1_ECX;
        }
        0xa => host = theirs(0xa, 0),
        0x8000_0001 => host.ecx &= !SVM,
        _ => {}
    }
    host
}

#[cfg(test)]
mod tests {
    use super::*;
    use nvmx_core::profiles;

    #[test]
    fn only_instructions_are_found() {
        // mov eax, 0a20fh; cpuid; nop; lock cpuid is none.
        let text = [0xb8, 0x0f, 0xa2, 0, 0, 0x0f, 0xa2, 0x90, 0x0f, 0xa2];
        assert_eq!(instructions(&text).collect::<Vec<_>>(), [5, 8]);
        assert_eq!(instructions(&text[..5]).count(), 0);
    }

    #[test]
    fn vendor_and_signature_are_the_profiles() {
        let profile = profiles::find("kvm-6.12").unwrap();
        let answer = answer(profile, 0, 0);
        assert_eq!(answer.ebx.to_le_bytes(), *b"Genu");
        assert_eq!(answer.ecx.to_le_bytes(), *b"ntel");
        assert_ne!(super::answer(profile, 1, 0).ecx & 1 << 5, 0, "VMX");
        let host = __cpuid_count(7, 0);
        assert_eq!(
            super::answer(profile, 7, 0).ebx,
            host.ebx,
            "what user code executes"
        );
    }
}
