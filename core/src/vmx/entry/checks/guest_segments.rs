//! Rules on guest segment registers (SDM Vol. 3C "Checks on Guest Segment Registers").
//!
//! KVM leaves all of them to the processor.

use super::context::{Context, implies};
use super::{Class, rules};
use crate::vmx::Field;
use crate::vmx::exit::qualification::EntryFailure;
use crate::vmx::exit::{SegmentFields, segment_fields as f};
use crate::x86::AccessRights;
use crate::x86::control::{cr0, rflags};

const TABLE_INDICATOR: u64 = 1 << 2;
const RPL: u64 = 3;
/// Access rights in virtual-8086 mode.
const VIRTUAL_8086_RIGHTS: u32 = 0xf3;
const VIRTUAL_8086_LIMIT: u64 = 0xffff;
/// Bits 31:17 and 11:8.
const RIGHTS_RESERVED: u32 = 0xfffe_0f00;
const READ_WRITE_ACCESSED: u8 = 3;
const READ_WRITE_ACCESSED_EXPAND_DOWN: u8 = 7;
const LDT: u8 = 2;
const BUSY_TSS_16: u8 = 3;
const BUSY_TSS: u8 = 11;

rules! { SELECTORS, "Checks on Guest Segment Registers"
    => Class::InvalidGuestState(EntryFailure::Default);
    Processor "guest.tr.selector" "TI of TR is 0" [GUEST_TR_SELECTOR]
        |c| c.get(Field::GUEST_TR_SELECTOR) & TABLE_INDICATOR == 0;
    Processor "guest.ldtr.selector" "if LDTR is usable, TI of it is 0"
        [GUEST_LDTR_SELECTOR GUEST_LDTR_AR_BYTES]
        |c| implies!(is_usable(c, &f::LDTR), c.get(Field::GUEST_LDTR_SELECTOR) & TABLE_INDICATOR == 0);
    Processor "guest.ss.selector"
        "outside virtual-8086 mode and without \"unrestricted guest\", RPL of SS equals RPL of CS"
        [GUEST_SS_SELECTOR GUEST_CS_SELECTOR GUEST_RFLAGS SECONDARY_VM_EXEC_CONTROL]
        |c| implies!(!is_virtual_8086(c) && !c.unrestricted(),
            (c.get(Field::GUEST_SS_SELECTOR) ^ c.get(Field::GUEST_CS_SELECTOR)) & RPL == 0);
}

rules! { TR, "Checks on Guest Segment Registers" => Class::InvalidGuestState(EntryFailure::Default);
    Processor "guest.tr.base" "the base of TR is canonical" [GUEST_TR_BASE]
        |c| c.canonical(Field::GUEST_TR_BASE);
    Processor "guest.tr.type"
        "TR is a busy TSS: 16 or 32 bits, with \"IA-32e mode guest\" 64 bits"
        [GUEST_TR_AR_BYTES VM_ENTRY_CONTROLS]
        |c| match rights(c, &f::TR).segment_type() {
            BUSY_TSS => true,
            BUSY_TSS_16 => !c.ia32e_guest(),
            _ => false,
        };
    Processor "guest.tr.system" "S of TR is 0" [GUEST_TR_AR_BYTES]
        |c| !rights(c, &f::TR).contains(AccessRights::CODE_OR_DATA);
    Processor "guest.tr.present" "TR is present" [GUEST_TR_AR_BYTES]
        |c| rights(c, &f::TR).contains(AccessRights::PRESENT);
    Processor "guest.tr.reserved" "reserved bits of TR's access rights are 0" [GUEST_TR_AR_BYTES]
        |c| rights(c, &f::TR).bits() & RIGHTS_RESERVED == 0;
    Processor "guest.tr.granularity" "G of TR fits its limit" [GUEST_TR_AR_BYTES GUEST_TR_LIMIT]
        |c| granularity_fits(c, &f::TR);
    Processor "guest.tr.usable" "TR is usable" [GUEST_TR_AR_BYTES]
        |c| is_usable(c, &f::TR);
}

rules! { LDTR, "Checks on Guest Segment Registers" => Class::InvalidGuestState(EntryFailure::Default);
    Processor "guest.ldtr.base" "if LDTR is usable, its base is canonical"
        [GUEST_LDTR_BASE GUEST_LDTR_AR_BYTES]
        |c| implies!(is_usable(c, &f::LDTR), c.canonical(Field::GUEST_LDTR_BASE));
    Processor "guest.ldtr.type" "if LDTR is usable, its type is LDT" [GUEST_LDTR_AR_BYTES]
        |c| implies!(is_usable(c, &f::LDTR), rights(c, &f::LDTR).segment_type() == LDT);
    Processor "guest.ldtr.system" "if LDTR is usable, S of it is 0" [GUEST_LDTR_AR_BYTES]
        |c| implies!(is_usable(c, &f::LDTR), !rights(c, &f::LDTR).contains(AccessRights::CODE_OR_DATA));
    Processor "guest.ldtr.present" "if LDTR is usable, it is present" [GUEST_LDTR_AR_BYTES]
        |c| implies!(is_usable(c, &f::LDTR), rights(c, &f::LDTR).contains(AccessRights::PRESENT));
    Processor "guest.ldtr.reserved" "if LDTR is usable, reserved bits of its access rights are 0"
        [GUEST_LDTR_AR_BYTES]
        |c| implies!(is_usable(c, &f::LDTR), rights(c, &f::LDTR).bits() & RIGHTS_RESERVED == 0);
    Processor "guest.ldtr.granularity" "if LDTR is usable, G of it fits its limit"
        [GUEST_LDTR_AR_BYTES GUEST_LDTR_LIMIT]
        |c| implies!(is_usable(c, &f::LDTR), granularity_fits(c, &f::LDTR));
}

/// The rules that CS, SS, DS, ES, FS and GS have in common, then those of one of them.
macro_rules! segment_rules {
    ($name:ident $label:literal $text:literal
     $selector:ident $base:ident $limit:ident $rights:ident; $(
        $id:literal $row_text:literal [$($field:ident)*] $holds:expr;
    )*) => {
        rules! { $name, "Checks on Guest Segment Registers"
            => Class::InvalidGuestState(EntryFailure::Default);
            Processor $label "in virtual-8086 mode, base, limit and access rights follow from the selector"
                [$selector $base $limit $rights GUEST_RFLAGS]
                |c| implies!(is_virtual_8086(c), is_virtual_8086_segment(c, &f::$name));
            $(Processor $id $row_text [$($field)* $rights GUEST_RFLAGS] $holds;)*
        }
    };
}

segment_rules! { CS "guest.cs.virtual_8086" "CS"
    GUEST_CS_SELECTOR GUEST_CS_BASE GUEST_CS_LIMIT GUEST_CS_AR_BYTES;
    "guest.cs.base" "bits 63:32 of the base of CS are 0" [GUEST_CS_BASE]
        |c| c.get(Field::GUEST_CS_BASE) >> 32 == 0;
    "guest.cs.type"
        "CS is accessed code, or with \"unrestricted guest\" accessed read/write data"
        [SECONDARY_VM_EXEC_CONTROL]
        |c| protected(c, match rights(c, &f::CS).segment_type() {
            9 | 11 | 13 | 15 => true,
            READ_WRITE_ACCESSED => c.unrestricted(),
            _ => false,
        });
    "guest.cs.system" "S of CS is 1" []
        |c| protected(c, rights(c, &f::CS).contains(AccessRights::CODE_OR_DATA));
    "guest.cs.dpl"
        "DPL of CS is 0 for data, SS.DPL for non-conforming code, at most SS.DPL for conforming code"
        [GUEST_SS_AR_BYTES]
        |c| {
            let (cs, ss) = (rights(c, &f::CS), rights(c, &f::SS));
            protected(c, match cs.segment_type() {
                READ_WRITE_ACCESSED => cs.dpl() == 0,
                9 | 11 => cs.dpl() == ss.dpl(),
                13 | 15 => cs.dpl() <= ss.dpl(),
                _ => true,
            })
        };
    "guest.cs.present" "CS is present" []
        |c| protected(c, rights(c, &f::CS).contains(AccessRights::PRESENT));
    "guest.cs.reserved" "reserved bits of CS's access rights are 0" []
        |c| protected(c, rights(c, &f::CS).bits() & RIGHTS_RESERVED == 0);
    "guest.cs.default_size" "with \"IA-32e mode guest\" and L of CS, D/B of it is 0" [VM_ENTRY_CONTROLS]
        |c| protected(c, implies!(c.ia32e_guest() && rights(c, &f::CS).contains(AccessRights::LONG),
            !rights(c, &f::CS).contains(AccessRights::DEFAULT_BIG)));
    "guest.cs.granularity" "G of CS fits its limit" [GUEST_CS_LIMIT]
        |c| protected(c, granularity_fits(c, &f::CS));
}

segment_rules! { SS "guest.ss.virtual_8086" "SS"
    GUEST_SS_SELECTOR GUEST_SS_BASE GUEST_SS_LIMIT GUEST_SS_AR_BYTES;
    "guest.ss.base" "if SS is usable, bits 63:32 of its base are 0" [GUEST_SS_BASE]
        |c| implies!(is_usable(c, &f::SS), c.get(Field::GUEST_SS_BASE) >> 32 == 0);
    "guest.ss.type" "if SS is usable, it is accessed read/write data" []
        |c| usable(c, &f::SS, matches!(rights(c, &f::SS).segment_type(),
            READ_WRITE_ACCESSED | READ_WRITE_ACCESSED_EXPAND_DOWN));
    "guest.ss.system" "if SS is usable, S of it is 1" []
        |c| usable(c, &f::SS, rights(c, &f::SS).contains(AccessRights::CODE_OR_DATA));
    "guest.ss.dpl_rpl" "without \"unrestricted guest\", DPL of SS equals its RPL"
        [GUEST_SS_SELECTOR SECONDARY_VM_EXEC_CONTROL]
        |c| protected(c, c.unrestricted()
            || u64::from(rights(c, &f::SS).dpl()) == c.get(Field::GUEST_SS_SELECTOR) & RPL);
    "guest.ss.dpl_real" "if CS is data or CR0.PE is 0, DPL of SS is 0" [GUEST_CS_AR_BYTES GUEST_CR0]
        |c| protected(c, implies!(
            rights(c, &f::CS).segment_type() == READ_WRITE_ACCESSED
                || c.get(Field::GUEST_CR0) & cr0::PE == 0,
            rights(c, &f::SS).dpl() == 0));
    "guest.ss.present" "if SS is usable, it is present" []
        |c| usable(c, &f::SS, rights(c, &f::SS).contains(AccessRights::PRESENT));
    "guest.ss.reserved" "if SS is usable, reserved bits of its access rights are 0" []
        |c| usable(c, &f::SS, rights(c, &f::SS).bits() & RIGHTS_RESERVED == 0);
    "guest.ss.granularity" "if SS is usable, G of it fits its limit" [GUEST_SS_LIMIT]
        |c| usable(c, &f::SS, granularity_fits(c, &f::SS));
}

/// DS, ES, FS and GS differ in the base alone.
macro_rules! data_segment_rules {
    ($name:ident $text:literal $selector:ident $base:ident $limit:ident $rights:ident
     $virtual_8086:literal $base_id:literal $base_text:literal $base_holds:expr;
     $type_:literal $system:literal $dpl:literal $present:literal $reserved:literal $granularity:literal) => {
        segment_rules! { $name $virtual_8086 $text $selector $base $limit $rights;
            $base_id $base_text [$base] $base_holds;
            $type_ "if the segment is usable, it is accessed data or accessed readable code" []
                |c| usable(c, &f::$name, is_readable_accessed(rights(c, &f::$name)));
            $system "if the segment is usable, S of it is 1" []
                |c| usable(c, &f::$name, rights(c, &f::$name).contains(AccessRights::CODE_OR_DATA));
            $dpl "if the segment is usable and no conforming code, without \"unrestricted guest\", DPL of it is not below RPL"
                [$selector SECONDARY_VM_EXEC_CONTROL]
                |c| usable(c, &f::$name, c.unrestricted()
                    || rights(c, &f::$name).segment_type() > 11
                    || u64::from(rights(c, &f::$name).dpl()) >= c.get(Field::$selector) & RPL);
            $present "if the segment is usable, it is present" []
                |c| usable(c, &f::$name, rights(c, &f::$name).contains(AccessRights::PRESENT));
            $reserved "if the segment is usable, reserved bits of its access rights are 0" []
                |c| usable(c, &f::$name, rights(c, &f::$name).bits() & RIGHTS_RESERVED == 0);
            $granularity "if the segment is usable, G of it fits its limit" [$limit]
                |c| usable(c, &f::$name, granularity_fits(c, &f::$name));
        }
    };
}

data_segment_rules! { DS "DS" GUEST_DS_SELECTOR GUEST_DS_BASE GUEST_DS_LIMIT GUEST_DS_AR_BYTES
    "guest.ds.virtual_8086" "guest.ds.base" "if DS is usable, bits 63:32 of its base are 0"
    |c| implies!(is_usable(c, &f::DS), c.get(Field::GUEST_DS_BASE) >> 32 == 0);
    "guest.ds.type" "guest.ds.system" "guest.ds.dpl" "guest.ds.present" "guest.ds.reserved"
    "guest.ds.granularity"
}
data_segment_rules! { ES "ES" GUEST_ES_SELECTOR GUEST_ES_BASE GUEST_ES_LIMIT GUEST_ES_AR_BYTES
    "guest.es.virtual_8086" "guest.es.base" "if ES is usable, bits 63:32 of its base are 0"
    |c| implies!(is_usable(c, &f::ES), c.get(Field::GUEST_ES_BASE) >> 32 == 0);
    "guest.es.type" "guest.es.system" "guest.es.dpl" "guest.es.present" "guest.es.reserved"
    "guest.es.granularity"
}
data_segment_rules! { FS "FS" GUEST_FS_SELECTOR GUEST_FS_BASE GUEST_FS_LIMIT GUEST_FS_AR_BYTES
    "guest.fs.virtual_8086" "guest.fs.base" "the base of FS is canonical"
    |c| c.canonical(Field::GUEST_FS_BASE);
    "guest.fs.type" "guest.fs.system" "guest.fs.dpl" "guest.fs.present" "guest.fs.reserved"
    "guest.fs.granularity"
}
data_segment_rules! { GS "GS" GUEST_GS_SELECTOR GUEST_GS_BASE GUEST_GS_LIMIT GUEST_GS_AR_BYTES
    "guest.gs.virtual_8086" "guest.gs.base" "the base of GS is canonical"
    |c| c.canonical(Field::GUEST_GS_BASE);
    "guest.gs.type" "guest.gs.system" "guest.gs.dpl" "guest.gs.present" "guest.gs.reserved"
    "guest.gs.granularity"
}

#[inline(always)]
fn rights(c: &Context<'_>, fields: &SegmentFields) -> AccessRights {
    AccessRights::from_bits_retain(c.vmcs12.get32(fields.access_rights))
}

#[inline(always)]
fn is_usable(c: &Context<'_>, fields: &SegmentFields) -> bool {
    !rights(c, fields).contains(AccessRights::UNUSABLE)
}

#[inline(always)]
fn is_virtual_8086(c: &Context<'_>) -> bool {
    c.get(Field::GUEST_RFLAGS) & rflags::VM != 0
}

/// A rule that only holds sway outside virtual-8086 mode.
#[inline(always)]
fn protected(c: &Context<'_>, holds: bool) -> bool {
    is_virtual_8086(c) || holds
}

/// A rule that only holds sway outside virtual-8086 mode and for usable segments.
#[inline(always)]
fn usable(c: &Context<'_>, fields: &SegmentFields, holds: bool) -> bool {
    is_virtual_8086(c) || !is_usable(c, fields) || holds
}

#[inline(always)]
fn is_virtual_8086_segment(c: &Context<'_>, fields: &SegmentFields) -> bool {
    c.get(fields.base) == c.get(fields.selector) << 4
        && c.get(fields.limit) == VIRTUAL_8086_LIMIT
        && rights(c, fields).bits() == VIRTUAL_8086_RIGHTS
}

/// "If any bit in the limit field in the range 11:0 is 0, G must be 0; if any bit in the range 31:20
/// is 1, G must be 1."
#[inline(always)]
fn granularity_fits(c: &Context<'_>, fields: &SegmentFields) -> bool {
    let limit = c.get(fields.limit);
    if rights(c, fields).contains(AccessRights::GRANULARITY) {
        limit & 0xfff == 0xfff
    } else {
        limit >> 20 == 0
    }
}

fn is_readable_accessed(rights: AccessRights) -> bool {
    rights.contains(AccessRights::ACCESSED)
        && implies!(
            rights.contains(AccessRights::CODE),
            rights.contains(AccessRights::WRITABLE_READABLE),
        )
}
