//! Bits of the control registers, EFER, RFLAGS, DR6 and DR7 (SDM Vol. 3A "Control Registers").

macro_rules! bits {
    ($(#[$doc:meta])* $module:ident { $($name:ident = $bit:expr, $text:literal;)* }) => {
        $(#[$doc])*
        pub mod $module {
            $(#[doc = $text] pub const $name: u64 = 1 << $bit;)*
        }
    };
}

bits! {
    /// CR0.
    cr0 {
        PE = 0, "Protection enable.";
        MP = 1, "Monitor coprocessor.";
        EM = 2, "Emulation.";
        TS = 3, "Task switched.";
        ET = 4, "Extension type.";
        NE = 5, "Numeric error.";
        WP = 16, "Write protect.";
        AM = 18, "Alignment mask.";
        NW = 29, "Not write-through.";
        CD = 30, "Cache disable.";
        PG = 31, "Paging.";
    }
}
bits! {
    /// CR4.
    cr4 {
        VME = 0, "Virtual-8086 mode extensions.";
        PVI = 1, "Protected-mode virtual interrupts.";
        TSD = 2, "Time-stamp disable.";
        DE = 3, "Debugging extensions.";
        PSE = 4, "Page-size extensions.";
        PAE = 5, "Physical-address extension.";
        MCE = 6, "Machine-check enable.";
        PGE = 7, "Page-global enable.";
        PCE = 8, "Performance-monitoring counter enable.";
        OSFXSR = 9, "FXSAVE and FXRSTOR support.";
        OSXMMEXCPT = 10, "Unmasked SIMD floating-point exceptions.";
        UMIP = 11, "User-mode instruction prevention.";
        LA57 = 12, "57-bit linear addresses.";
        VMXE = 13, "VMX enable.";
        SMXE = 14, "SMX enable.";
        FSGSBASE = 16, "FSGSBASE instructions.";
        PCIDE = 17, "Process-context identifiers.";
        OSXSAVE = 18, "XSAVE and extended states.";
        KL = 19, "Key Locker.";
        SMEP = 20, "Supervisor-mode execution prevention.";
        SMAP = 21, "Supervisor-mode access prevention.";
        PKE = 22, "Protection keys, user pages.";
        CET = 23, "Control-flow enforcement.";
        PKS = 24, "Protection keys, supervisor pages.";
        UINTR = 25, "User interrupts.";
        LAM_SUP = 28, "Supervisor linear-address masking.";
    }
}
bits! {
    /// IA32_EFER.
    efer {
        SCE = 0, "SYSCALL enable.";
        LME = 8, "Long-mode enable.";
        LMA = 10, "Long-mode active.";
        NXE = 11, "Execute-disable enable.";
    }
}
bits! {
    /// DR7.
    dr7 {
        GD = 13, "General detect enable.";
    }
}
bits! {
    /// RFLAGS.
    rflags {
        CF = 0, "Carry.";
        FIXED = 1, "Always one.";
        PF = 2, "Parity.";
        AF = 4, "Auxiliary carry.";
        ZF = 6, "Zero.";
        SF = 7, "Sign.";
        TF = 8, "Trap (single step).";
        IF = 9, "Interrupt enable.";
        DF = 10, "Direction.";
        OF = 11, "Overflow.";
        NT = 14, "Nested task.";
        RF = 16, "Resume.";
        VM = 17, "Virtual-8086 mode.";
        AC = 18, "Alignment check, access control.";
        VIF = 19, "Virtual interrupt flag.";
        VIP = 20, "Virtual interrupt pending.";
        ID = 21, "CPUID present.";
    }
}

/// I/O privilege level in RFLAGS, 0 to 3.
#[must_use]
pub const fn iopl(rflags: u64) -> u8 {
    ((rflags >> 12) & 3) as u8
}

/// CF, PF, AF, ZF, SF, OF: what VMX instructions set or clear (SDM Vol. 3C "Conventions").
pub const ARITHMETIC_FLAGS: u64 =
    rflags::CF | rflags::PF | rflags::AF | rflags::ZF | rflags::SF | rflags::OF;
