//! Where each field lies in a vmcs12: `struct vmcs12` of `arch/x86/kvm/vmx/vmcs12.h`, whose offsets
//! Linux froze for save and restore, and the rows of `vmcs12_field_offsets[]`.
//!
//! The same table decides which fields VMREAD and VMWRITE find: KVM offers every row to L1, whether
//! or not the feature behind it is exposed. Fields that KVM's layout lacks lie in what used to be the
//! CR3-target values and, from byte 1024 on, behind everything that Linux uses; KVM neither reads nor
//! writes those bytes, and its personality does not have the fields.

use crate::vmx::Field;
use serde::{Deserialize, Serialize};

/// Which rows of the table there are.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[repr(u8)]
pub enum Layout {
    /// Linux 6.1 to 6.17.
    #[default]
    Linux6_1 = 0,
    /// Linux 6.18 and later: with the CET fields.
    Linux6_18 = 1,
    /// Every field of the SDM's appendix.
    Extended = 2,
}

/// One row: a field and where its first byte lies.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// Offset in bytes.
    pub offset: u16,
    /// The field, full access.
    pub field: Field,
    /// The first layout that has it.
    pub since: Layout,
}

/// Where the bytes of one access lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// Offset of the first byte.
    pub offset: usize,
    /// Bytes: 2, 4 or 8.
    pub bytes: usize,
    /// The first layout that has it.
    pub since: Layout,
}

macro_rules! layout {
    ($($since:ident: $($offset:literal $name:ident;)*)*) => {
        /// The fields in the order of their offsets.
        pub static ROWS: &[Row] = TABLE;
        const TABLE: &[Row] = &[$($(Row {
            offset: $offset,
            field: Field::$name,
            since: Layout::$since,
        },)*)*];
    };
}

layout! {
    Linux6_1:
          40 IO_BITMAP_A;
          48 IO_BITMAP_B;
          56 MSR_BITMAP;
          64 VM_EXIT_MSR_STORE_ADDR;
          72 VM_EXIT_MSR_LOAD_ADDR;
          80 VM_ENTRY_MSR_LOAD_ADDR;
          88 TSC_OFFSET;
          96 VIRTUAL_APIC_PAGE_ADDR;
         104 APIC_ACCESS_ADDR;
         112 POSTED_INTR_DESC_ADDR;
         120 EPT_POINTER;
         128 EOI_EXIT_BITMAP0;
         136 EOI_EXIT_BITMAP1;
         144 EOI_EXIT_BITMAP2;
         152 EOI_EXIT_BITMAP3;
         160 XSS_EXIT_BITMAP;
         168 GUEST_PHYSICAL_ADDRESS;
         176 VMCS_LINK_POINTER;
         184 GUEST_IA32_DEBUGCTL;
         192 GUEST_IA32_PAT;
         200 GUEST_IA32_EFER;
         208 GUEST_IA32_PERF_GLOBAL_CTRL;
         216 GUEST_PDPTR0;
         224 GUEST_PDPTR1;
         232 GUEST_PDPTR2;
         240 GUEST_PDPTR3;
         248 GUEST_BNDCFGS;
         256 HOST_IA32_PAT;
         264 HOST_IA32_EFER;
         272 HOST_IA32_PERF_GLOBAL_CTRL;
         280 VMREAD_BITMAP;
         288 VMWRITE_BITMAP;
         296 VM_FUNCTION_CONTROL;
         304 EPTP_LIST_ADDRESS;
         312 PML_ADDRESS;
         320 ENCLS_EXITING_BITMAP;
         328 TSC_MULTIPLIER;
         344 CR0_GUEST_HOST_MASK;
         352 CR4_GUEST_HOST_MASK;
         360 CR0_READ_SHADOW;
         368 CR4_READ_SHADOW;
    Extended:
         376 CR3_TARGET_VALUE0;
         384 CR3_TARGET_VALUE1;
         392 CR3_TARGET_VALUE2;
         400 CR3_TARGET_VALUE3;
    Linux6_1:
         408 EXIT_QUALIFICATION;
         416 GUEST_LINEAR_ADDRESS;
         424 GUEST_CR0;
         432 GUEST_CR3;
         440 GUEST_CR4;
         448 GUEST_ES_BASE;
         456 GUEST_CS_BASE;
         464 GUEST_SS_BASE;
         472 GUEST_DS_BASE;
         480 GUEST_FS_BASE;
         488 GUEST_GS_BASE;
         496 GUEST_LDTR_BASE;
         504 GUEST_TR_BASE;
         512 GUEST_GDTR_BASE;
         520 GUEST_IDTR_BASE;
         528 GUEST_DR7;
         536 GUEST_RSP;
         544 GUEST_RIP;
         552 GUEST_RFLAGS;
         560 GUEST_PENDING_DBG_EXCEPTIONS;
         568 GUEST_SYSENTER_ESP;
         576 GUEST_SYSENTER_EIP;
         584 HOST_CR0;
         592 HOST_CR3;
         600 HOST_CR4;
         608 HOST_FS_BASE;
         616 HOST_GS_BASE;
         624 HOST_TR_BASE;
         632 HOST_GDTR_BASE;
         640 HOST_IDTR_BASE;
         648 HOST_IA32_SYSENTER_ESP;
         656 HOST_IA32_SYSENTER_EIP;
         664 HOST_RSP;
         672 HOST_RIP;
    Linux6_18:
         680 HOST_S_CET;
         688 HOST_SSP;
         696 HOST_INTR_SSP_TABLE;
         704 GUEST_S_CET;
         712 GUEST_SSP;
         720 GUEST_INTR_SSP_TABLE;
    Linux6_1:
         744 PIN_BASED_VM_EXEC_CONTROL;
         748 CPU_BASED_VM_EXEC_CONTROL;
         752 EXCEPTION_BITMAP;
         756 PAGE_FAULT_ERROR_CODE_MASK;
         760 PAGE_FAULT_ERROR_CODE_MATCH;
         764 CR3_TARGET_COUNT;
         768 VM_EXIT_CONTROLS;
         772 VM_EXIT_MSR_STORE_COUNT;
         776 VM_EXIT_MSR_LOAD_COUNT;
         780 VM_ENTRY_CONTROLS;
         784 VM_ENTRY_MSR_LOAD_COUNT;
         788 VM_ENTRY_INTR_INFO_FIELD;
         792 VM_ENTRY_EXCEPTION_ERROR_CODE;
         796 VM_ENTRY_INSTRUCTION_LEN;
         800 TPR_THRESHOLD;
         804 SECONDARY_VM_EXEC_CONTROL;
         808 VM_INSTRUCTION_ERROR;
         812 VM_EXIT_REASON;
         816 VM_EXIT_INTR_INFO;
         820 VM_EXIT_INTR_ERROR_CODE;
         824 IDT_VECTORING_INFO_FIELD;
         828 IDT_VECTORING_ERROR_CODE;
         832 VM_EXIT_INSTRUCTION_LEN;
         836 VMX_INSTRUCTION_INFO;
         840 GUEST_ES_LIMIT;
         844 GUEST_CS_LIMIT;
         848 GUEST_SS_LIMIT;
         852 GUEST_DS_LIMIT;
         856 GUEST_FS_LIMIT;
         860 GUEST_GS_LIMIT;
         864 GUEST_LDTR_LIMIT;
         868 GUEST_TR_LIMIT;
         872 GUEST_GDTR_LIMIT;
         876 GUEST_IDTR_LIMIT;
         880 GUEST_ES_AR_BYTES;
         884 GUEST_CS_AR_BYTES;
         888 GUEST_SS_AR_BYTES;
         892 GUEST_DS_AR_BYTES;
         896 GUEST_FS_AR_BYTES;
         900 GUEST_GS_AR_BYTES;
         904 GUEST_LDTR_AR_BYTES;
         908 GUEST_TR_AR_BYTES;
         912 GUEST_INTERRUPTIBILITY_INFO;
         916 GUEST_ACTIVITY_STATE;
         920 GUEST_SYSENTER_CS;
         924 HOST_IA32_SYSENTER_CS;
         928 VMX_PREEMPTION_TIMER_VALUE;
         960 VIRTUAL_PROCESSOR_ID;
         962 POSTED_INTR_NV;
         964 GUEST_ES_SELECTOR;
         966 GUEST_CS_SELECTOR;
         968 GUEST_SS_SELECTOR;
         970 GUEST_DS_SELECTOR;
         972 GUEST_FS_SELECTOR;
         974 GUEST_GS_SELECTOR;
         976 GUEST_LDTR_SELECTOR;
         978 GUEST_TR_SELECTOR;
         980 GUEST_INTR_STATUS;
         982 HOST_ES_SELECTOR;
         984 HOST_CS_SELECTOR;
         986 HOST_SS_SELECTOR;
         988 HOST_DS_SELECTOR;
         990 HOST_FS_SELECTOR;
         992 HOST_GS_SELECTOR;
         994 HOST_TR_SELECTOR;
         996 GUEST_PML_INDEX;
    Extended:
        1024 TERTIARY_VM_EXEC_CONTROL;
        1032 SECONDARY_VM_EXIT_CONTROLS;
        1040 EXECUTIVE_VMCS_POINTER;
        1048 VE_INFORMATION_ADDRESS;
        1056 SPP_TABLE_POINTER;
        1064 ENCLV_EXITING_BITMAP;
        1072 LOW_PASID_DIRECTORY;
        1080 HIGH_PASID_DIRECTORY;
        1088 SHARED_EPT_POINTER;
        1096 PCONFIG_EXITING_BITMAP;
        1104 HLAT_POINTER;
        1112 PID_POINTER_TABLE;
        1120 SPEC_CTRL_MASK;
        1128 SPEC_CTRL_SHADOW;
        1136 GUEST_DEADLINE_SHADOW;
        1144 INJECTED_EVENT_DATA;
        1152 MSR_DATA;
        1160 ORIGINAL_EVENT_DATA;
        1168 GUEST_IA32_RTIT_CTL;
        1176 GUEST_IA32_LBR_CTL;
        1184 GUEST_IA32_PKRS;
        1192 GUEST_IA32_FRED_CONFIG;
        1200 GUEST_IA32_FRED_RSP1;
        1208 GUEST_IA32_FRED_RSP2;
        1216 GUEST_IA32_FRED_RSP3;
        1224 GUEST_IA32_FRED_STKLVLS;
        1232 GUEST_IA32_FRED_SSP1;
        1240 GUEST_IA32_FRED_SSP2;
        1248 GUEST_IA32_FRED_SSP3;
        1256 GUEST_IA32_SPEC_CTRL;
        1264 GUEST_DEADLINE;
        1272 HOST_IA32_PKRS;
        1280 HOST_IA32_FRED_CONFIG;
        1288 HOST_IA32_FRED_RSP1;
        1296 HOST_IA32_FRED_RSP2;
        1304 HOST_IA32_FRED_RSP3;
        1312 HOST_IA32_FRED_STKLVLS;
        1320 HOST_IA32_FRED_SSP1;
        1328 HOST_IA32_FRED_SSP2;
        1336 HOST_IA32_FRED_SSP3;
        1344 HOST_IA32_SPEC_CTRL;
        1352 IO_RCX;
        1360 IO_RSI;
        1368 IO_RDI;
        1376 IO_RIP;
        1384 PLE_GAP;
        1388 PLE_WINDOW;
        1392 NOTIFY_WINDOW;
        1396 GUEST_SMBASE;
        1400 EPTP_INDEX;
        1402 HLAT_PREFIX_SIZE;
        1404 LAST_PID_POINTER_INDEX;
        1406 VIRTUAL_TIMER_VECTOR;
        1408 GUEST_UINV;
}

/// Bits of an entry of [`SLOTS`]: offset in 11:0, log2 of the bytes in 13:12, layout in 15:14.
/// Zero: no such field (offset 0 holds the revision).
static SLOTS: [u16; Field::SLOTS] = {
    let mut slots = [0; Field::SLOTS];
    let mut number = 0;
    while number < TABLE.len() {
        let Row {
            offset,
            field,
            since,
        } = TABLE[number];
        let bytes = field.access_bytes() as u16;
        assert!(offset.is_multiple_of(bytes), "not aligned");
        assert!(offset + bytes <= 4096, "beyond the region");
        if number > 0 {
            let before = TABLE[number - 1];
            let end = before.offset + before.field.access_bytes() as u16;
            assert!(end <= offset, "rows out of order or overlapping");
        }
        assert!(
            matches!(since, Layout::Extended) || offset + bytes <= super::VMCS12_USED as u16,
            "beyond what Linux saves"
        );
        let Some(slot) = field.slot() else {
            panic!("no slot")
        };
        assert!(slots[slot] == 0, "field twice");
        slots[slot] = offset | (bytes.trailing_zeros() as u16) << 12 | (since as u16) << 14;
        if let Some(high) = field.high() {
            let Some(slot) = high.slot() else {
                panic!("no slot")
            };
            slots[slot] = (offset + 4) | 2 << 12 | (since as u16) << 14;
        }
        number += 1;
    }
    slots
};

/// Where the bytes of a field (or of its high half) lie, in whichever layout; `None` if in none.
#[inline(always)]
#[must_use]
pub const fn locate(field: Field) -> Option<Location> {
    let Some(slot) = field.slot() else {
        return None;
    };
    let entry = SLOTS[slot];
    if entry == 0 {
        return None;
    }
    Some(Location {
        offset: (entry & 0xfff) as usize,
        bytes: 1 << (entry >> 12 & 3),
        since: match entry >> 14 {
            0 => Layout::Linux6_1,
            1 => Layout::Linux6_18,
            _ => Layout::Extended,
        },
    })
}

impl Layout {
    /// Whether VMREAD and VMWRITE find the field (KVM: `get_vmcs12_field_offset`).
    #[inline]
    #[must_use]
    pub const fn has(self, field: Field) -> bool {
        match locate(field) {
            Some(location) => location.since as u8 <= self as u8,
            None => false,
        }
    }

    /// The highest index of any field (KVM: `nested_vmx_calc_vmcs_enum_msr`).
    #[must_use]
    pub const fn highest_index(self) -> u32 {
        let mut highest = 0;
        let mut number = 0;
        while number < TABLE.len() {
            let Row { field, since, .. } = TABLE[number];
            if since as u8 <= self as u8 && field.index() > highest {
                highest = field.index();
            }
            number += 1;
        }
        highest
    }

    /// What IA32_VMX_VMCS_ENUM reads with this layout: the highest index in bits 9:1.
    #[must_use]
    pub const fn vmcs_enum(self) -> u64 {
        (self.highest_index() as u64) << 1
    }

    /// The fields of this layout in the order of their offsets, without the high halves.
    pub fn fields(self) -> impl Iterator<Item = Field> {
        ROWS.iter()
            .filter(move |row| row.since <= self)
            .map(|row| row.field)
    }
}
