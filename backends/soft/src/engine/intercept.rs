//! What the engine reports: intercepted instructions, exceptions, and which of them are on.
//!
//! Unicorn still carries QEMU's model of AMD-V. With the guest bit set in the hidden flags, each
//! instruction and exception that the intercept bitmaps name leaves translated code as
//! 0x100 + the SVM exit code (AMD APM Vol. 2, "SVM Intercept Codes"), RIP at the instruction. The
//! codes serve as a numbering alone: nothing of SVM shows in the guest.

use super::scan::Special;

/// An event that the layer above must handle. RIP is at the instruction, which has not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Intercept {
    /// MOV from CRn, or SMSW (0).
    CrRead(u8),
    /// MOV to CRn, or LMSW and CLTS (0).
    CrWrite(u8),
    /// MOV from DRn.
    DrRead(u8),
    /// MOV to DRn.
    DrWrite(u8),
    /// A fault or trap with this vector; the error code goes with it. For #DB by single step RIP is
    /// behind the instruction that trapped. #UD is also how VMX instructions, XSAVE, XRSTOR and
    /// everything else that the translator lacks arrive.
    Exception(u8),
    /// Interrupts can be taken now: RFLAGS.IF is set and no shadow holds them off. Asked for with
    /// `Env::set_interrupt_request`, which the handler must clear or use.
    InterruptWindow,
    /// SIDT.
    IdtrRead,
    /// SGDT.
    GdtrRead,
    /// SLDT.
    LdtrRead,
    /// STR.
    TrRead,
    /// LIDT.
    IdtrWrite,
    /// LGDT.
    GdtrWrite,
    /// LLDT.
    LdtrWrite,
    /// LTR.
    TrWrite,
    /// RDTSC.
    Rdtsc,
    /// RDTSCP.
    Rdtscp,
    /// RDPMC.
    Rdpmc,
    /// PUSHF.
    Pushf,
    /// POPF.
    Popf,
    /// CPUID.
    Cpuid,
    /// RSM.
    Rsm,
    /// IRET.
    Iret,
    /// INT n, INT3 or INTO.
    SoftwareInterrupt,
    /// INVD or WBINVD.
    CacheInvalidate,
    /// PAUSE.
    Pause,
    /// HLT.
    Hlt,
    /// INVLPG.
    Invlpg,
    /// RDMSR; ECX is the number.
    Rdmsr,
    /// WRMSR; ECX is the number.
    Wrmsr,
    /// MONITOR.
    Monitor,
    /// MWAIT.
    Mwait,
    /// An instruction that the translator would run wrongly: found when its block was translated.
    Special(Special),
    /// Any other SVM exit code.
    Other(u16),
}

impl Intercept {
    /// From an SVM exit code and its first information word.
    pub(super) fn from_svm(code: u16, information: u32) -> Self {
        match code {
            0x00..=0x0f => Self::CrRead(code as u8),
            0x10..=0x1f => Self::CrWrite(code as u8 & 15),
            0x20..=0x2f => Self::DrRead(code as u8 & 15),
            0x30..=0x3f => Self::DrWrite(code as u8 & 15),
            0x40..=0x5f => Self::Exception(code as u8 & 31),
            0x60 => Self::InterruptWindow,
            0x66 => Self::IdtrRead,
            0x67 => Self::GdtrRead,
            0x68 => Self::LdtrRead,
            0x69 => Self::TrRead,
            0x6a => Self::IdtrWrite,
            0x6b => Self::GdtrWrite,
            0x6c => Self::LdtrWrite,
            0x6d => Self::TrWrite,
            0x6e => Self::Rdtsc,
            0x6f => Self::Rdpmc,
            0x70 => Self::Pushf,
            0x71 => Self::Popf,
            0x72 => Self::Cpuid,
            0x73 => Self::Rsm,
            0x74 => Self::Iret,
            0x75 => Self::SoftwareInterrupt,
            0x76 | 0x89 => Self::CacheInvalidate,
            0x77 => Self::Pause,
            0x78 => Self::Hlt,
            0x79 => Self::Invlpg,
            0x7c if information & 1 == 0 => Self::Rdmsr,
            0x7c => Self::Wrmsr,
            0x87 => Self::Rdtscp,
            0x8a => Self::Monitor,
            0x8b => Self::Mwait,
            _ => Self::Other(code),
        }
    }
}

/// Which instructions and exceptions are intercepted.
///
/// Those that the translator runs wrongly or dangerously are always on, whatever a caller asks:
/// exceptions and INT n (unicorn delivers none, and turns a second fault into #DF), HLT, MSRs, CPUID,
/// the TSC, MOV to CR0, CR3, CR4, CR8 and DRn (the latter would arm unicorn's own watchpoints, which
/// it cannot leave), and the SVM instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Intercepts {
    pub(super) codes: u64,
    pub(super) cr_read: u16,
    pub(super) cr_write: u16,
    pub(super) dr_read: u16,
    pub(super) dr_write: u16,
}

const fn code(number: u64) -> u64 {
    1 << (number - 0x60)
}

impl Default for Intercepts {
    fn default() -> Self {
        Self::ALWAYS
    }
}

impl Intercepts {
    /// What is always on. LGDT and LIDT because the translator does not check the base, PAUSE because it
    /// forgets the single step behind it.
    pub const ALWAYS: Self = Self {
        codes: code(0x60)
            | code(0x61)
            | code(0x62)
            | code(0x63)
            | code(0x6a)
            | code(0x6b)
            | code(0x6e)
            | code(0x6f)
            | code(0x72)
            | code(0x73)
            | code(0x75)
            | code(0x76)
            | code(0x77)
            | code(0x78)
            | code(0x7a)
            | code(0x7c)
            | code(0x7d)
            | code(0x7f)
            | code(0x80)
            | code(0x81)
            | code(0x82)
            | code(0x83)
            | code(0x84)
            | code(0x85)
            | code(0x86)
            | code(0x87)
            | code(0x88)
            | code(0x89)
            | code(0x8a)
            | code(0x8b),
        cr_read: 1 << 8,
        cr_write: 1 | 1 << 3 | 1 << 4 | 1 << 8,
        dr_read: 0,
        dr_write: 0xffff,
    };

    /// Adds an intercept. Those that cannot be switched are ignored.
    #[must_use]
    pub const fn with(mut self, intercept: Intercept) -> Self {
        match intercept {
            Intercept::CrRead(n) => self.cr_read |= 1 << (n & 15),
            Intercept::CrWrite(n) => self.cr_write |= 1 << (n & 15),
            Intercept::DrRead(n) => self.dr_read |= 1 << (n & 15),
            Intercept::DrWrite(n) => self.dr_write |= 1 << (n & 15),
            Intercept::IdtrRead => self.codes |= code(0x66),
            Intercept::GdtrRead => self.codes |= code(0x67),
            Intercept::LdtrRead => self.codes |= code(0x68),
            Intercept::TrRead => self.codes |= code(0x69),
            Intercept::LdtrWrite => self.codes |= code(0x6c),
            Intercept::TrWrite => self.codes |= code(0x6d),
            Intercept::Pushf => self.codes |= code(0x70),
            Intercept::Popf => self.codes |= code(0x71),
            Intercept::Iret => self.codes |= code(0x74),
            Intercept::CacheInvalidate => self.codes |= code(0x76) | code(0x89),
            Intercept::Invlpg => self.codes |= code(0x79),
            _ => {}
        }
        self
    }

    /// Both sets together.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self {
            codes: self.codes | other.codes,
            cr_read: self.cr_read | other.cr_read,
            cr_write: self.cr_write | other.cr_write,
            dr_read: self.dr_read | other.dr_read,
            dr_write: self.dr_write | other.dr_write,
        }
    }
}
