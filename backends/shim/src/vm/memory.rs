//! Memory slots and their dirty log (Linux: virt/kvm/kvm_main.c, `__kvm_set_memory_region`,
//! `kvm_get_dirty_log_protect`, `kvm_clear_dirty_log_protect`), and the addresses that real mode once needed.

use crate::errno::{Answer, Errno};
use crate::os::{self, User};
use crate::vcpu::VcpuContext;
use crate::vm::VmContext;
use kvm_bindings::*;
use nvmx_core::addr::L1Phys;
use nvmx_soft::{MemorySlot, SoftVm, Space};
use std::collections::BTreeMap;

const PAGE_SIZE: u64 = 4096;
/// `KVM_USER_MEM_SLOTS`: SHRT_MAX less the three of the kernel's own.
pub const USER_SLOTS: u32 = 32764;
/// `kvm_arch_nr_memslot_as_ids`: SMM has a space of its own.
pub const ADDRESS_SPACES: u32 = 2;
/// `KVM_MEM_MAX_NR_PAGES`.
const MOST_PAGES: u64 = (1 << 31) - 1;
/// `TASK_SIZE_MAX`: where user space ends.
const USER_END: u64 = 0x7fff_ffff_f000;
/// `KVM_MIN_ALLOC_MMU_PAGES`.
const LEAST_MMU_PAGES: u64 = 64;

/// What the kernel keeps of a VM's memory.
#[derive(Debug, Default)]
pub struct Memory {
    /// By the number of address space and slot.
    slots: BTreeMap<u32, Slot>,
    /// The last byte's address and the number of each slot, by address space and start.
    places: BTreeMap<(Space, u64), (u64, u32)>,
    /// Pages of all slots (`nr_memslot_pages`).
    pages: u64,
    /// `KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE` and what comes with it.
    manual_protect: u64,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    space: Space,
    start: u64,
    pages: u64,
    host: u64,
    flags: u32,
}

impl Slot {
    const fn logs(&self) -> bool {
        self.flags & KVM_MEM_LOG_DIRTY_PAGES != 0
    }

    const fn start(&self) -> L1Phys {
        L1Phys(self.start)
    }

    const fn last(&self) -> u64 {
        self.start + (self.pages * PAGE_SIZE - 1)
    }
}

/// KVM_SET_USER_MEMORY_REGION.
pub fn set_user_memory_region(context: &mut VmContext<'_>, user: User, argument: u64) -> Answer {
    let region: kvm_userspace_memory_region = user.read(argument)?;
    set_region(context, &region, KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY)
}

/// KVM_SET_USER_MEMORY_REGION2, where it differs: what is private is refused as a flag.
pub fn set_user_memory_region2(context: &mut VmContext<'_>, user: User, argument: u64) -> Answer {
    let region: kvm_userspace_memory_region2 = user.read(argument)?;
    let first = kvm_userspace_memory_region {
        slot: region.slot,
        flags: region.flags,
        guest_phys_addr: region.guest_phys_addr,
        memory_size: region.memory_size,
        userspace_addr: region.userspace_addr,
    };
    set_region(context, &first, KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY)
}

fn space_of(slot: u32) -> Result<Space, Errno> {
    if slot & 0xffff >= USER_SLOTS {
        return Err(Errno::EINVAL);
    }
    match slot >> 16 {
        0 => Ok(Space::Normal),
        1 => Ok(Space::Smm),
        _ => Err(Errno::EINVAL),
    }
}

/// `access_ok`.
const fn is_user(address: u64, length: u64) -> bool {
    length <= USER_END && address <= USER_END - length
}

fn set_region(
    context: &mut VmContext<'_>,
    region: &kvm_userspace_memory_region,
    flags: u32,
) -> Answer {
    let id = region.slot;
    let space = space_of(id)?;
    let new = Slot {
        space,
        start: region.guest_phys_addr,
        pages: region.memory_size / PAGE_SIZE,
        host: region.userspace_addr,
        flags: region.flags,
    };
    let aligned = [region.memory_size, new.start, new.host]
        .iter()
        .all(|value| value.is_multiple_of(PAGE_SIZE));
    let end = new.start.checked_add(region.memory_size);
    if region.flags & !flags != 0
        || !aligned
        || !is_user(new.host, region.memory_size)
        || end.is_none()
        || new.pages > MOST_PAGES
    {
        return Err(Errno::EINVAL);
    }
    let vm = &mut *context.vm;
    let memory = &mut vm.memory;
    let old = memory.slots.get(&id).copied();
    if new.pages == 0 {
        let old = old.ok_or(Errno::EINVAL)?;
        memory.forget(id, &old);
        vm.soft.0.remove_memory(space, old.start());
        return Ok(0);
    }
    if let Some(old) = old {
        let fixed = old.host == new.host
            && old.pages == new.pages
            && (old.flags ^ new.flags) & KVM_MEM_READONLY == 0;
        if !fixed {
            return Err(Errno::EINVAL);
        }
        if old.start == new.start {
            if old.flags != new.flags {
                memory.begin_log(&mut vm.soft.0, &new);
                memory.slots.insert(id, new);
            }
            return Ok(0);
        }
    }
    if memory.overlaps(&new, id) {
        return Err(Errno::EEXIST);
    }
    // `kvm_arch_prepare_memory_region`: not beyond the width of the processor's addresses.
    if end.is_none_or(|end| end > 1 << vm.physical_address_width) {
        return Err(Errno::EINVAL);
    }
    // A slot that moves takes its log along.
    let log = old.filter(|old| old.logs() && new.logs()).and_then(|old| {
        let words = vm.soft.0.dirty_log(space, old.start());
        words.map(<[u64]>::to_vec)
    });
    if let Some(old) = old {
        vm.soft.0.remove_memory(space, old.start());
        memory.forget(id, &old);
    }
    let slot = MemorySlot {
        space,
        start: new.start(),
        length: region.memory_size,
        host: new.host as usize as *mut u8,
        read_only: new.flags & KVM_MEM_READONLY != 0,
    };
    os::add_memory(&mut vm.soft.0, &slot).map_err(|_| Errno::EINVAL)?;
    match log {
        Some(log) => {
            vm.soft.0.fill_dirty_log(space, new.start(), true);
            let clean: Vec<u64> = log.iter().map(|word| !word).collect();
            vm.soft.0.clear_dirty_log(space, new.start(), 0, &clean);
        }
        None => memory.begin_log(&mut vm.soft.0, &new),
    }
    memory.slots.insert(id, new);
    memory.places.insert((space, new.start), (new.last(), id));
    memory.pages += new.pages;
    Ok(0)
}

impl Memory {
    /// Whether a slot with another number lies where this one is to be.
    fn overlaps(&self, new: &Slot, id: u32) -> bool {
        let places = (new.space, 0)..=(new.space, new.last());
        let before = self.places.range(places).rev();
        // Of those that begin before its end the last one overlaps, or that before the one that moves.
        before
            .take(2)
            .any(|(_, &(last, other))| other != id && last >= new.start)
    }

    fn forget(&mut self, id: u32, slot: &Slot) {
        self.slots.remove(&id);
        self.places.remove(&(slot.space, slot.start));
        self.pages -= slot.pages;
    }

    /// The log as it is when it begins.
    fn begin_log(&self, soft: &mut SoftVm, slot: &Slot) {
        if slot.logs() {
            let all = self.manual_protect & u64::from(KVM_DIRTY_LOG_INITIALLY_SET) != 0;
            soft.fill_dirty_log(slot.space, slot.start(), all);
        }
    }

    /// The slot with this number, if it keeps a log.
    fn logged(&self, id: u32) -> Result<Slot, Errno> {
        space_of(id)?;
        let slot = self.slots.get(&id).filter(|slot| slot.logs());
        slot.copied().ok_or(Errno::ENOENT)
    }
}

/// KVM_GET_DIRTY_LOG: the log, which it clears unless KVM_CLEAR_DIRTY_LOG is to.
pub fn get_dirty_log(context: &mut VmContext<'_>, user: User, argument: u64) -> Answer {
    // `struct kvm_dirty_log`: the slot, padding, where the bitmap goes.
    let [slot, bitmap]: [u64; 2] = user.read(argument)?;
    let vm = &mut *context.vm;
    let slot = vm.memory.logged(slot as u32)?;
    let (space, start) = (slot.space, slot.start());
    let words = vm.soft.0.dirty_log(space, start).ok_or(Errno::ENOENT)?;
    let words = words.to_vec();
    if vm.memory.manual_protect == 0 && words.iter().any(|&word| word != 0) {
        vm.soft.0.fill_dirty_log(space, start, false);
    }
    // As in the kernel a bad address loses the log.
    user.write_all(bitmap, &words)?;
    Ok(0)
}

/// KVM_CLEAR_DIRTY_LOG.
pub fn clear_dirty_log(context: &mut VmContext<'_>, user: User, argument: u64) -> Answer {
    // `struct kvm_clear_dirty_log`: the slot, the number of pages, the first page, where the bitmap is.
    let [numbers, first_page, bitmap]: [u64; 3] = user.read(argument)?;
    let (slot, pages) = (numbers as u32, numbers >> 32);
    let vm = &mut *context.vm;
    space_of(slot)?;
    if first_page % 64 != 0 {
        return Err(Errno::EINVAL);
    }
    let slot = vm.memory.logged(slot)?;
    let left = slot.pages.checked_sub(first_page);
    let left = left.filter(|&left| pages <= left && (pages == left || pages % 64 == 0));
    if left.is_none() {
        return Err(Errno::EINVAL);
    }
    let bits: Vec<u64> = user.read_all(bitmap, pages.div_ceil(64) as usize)?;
    vm.soft
        .0
        .clear_dirty_log(slot.space, slot.start(), first_page, &bits);
    Ok(0)
}

/// KVM_ENABLE_CAP of KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 (kvm_vm_ioctl_enable_cap_generic).
pub fn enable_manual_protect(context: &mut VmContext<'_>, request: &kvm_enable_cap) -> Answer {
    let enable = u64::from(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE);
    let options = request.args[0];
    let allowed = if options & enable != 0 {
        enable | u64::from(KVM_DIRTY_LOG_INITIALLY_SET)
    } else {
        enable
    };
    if options & !allowed != 0 {
        return Err(Errno::EINVAL);
    }
    context.vm.memory.manual_protect = options;
    Ok(0)
}

/// KVM_SET_NR_MMU_PAGES: a limit on what there is none of here.
pub fn set_nr_mmu_pages(_: &mut VmContext<'_>, _: User, argument: u64) -> Answer {
    if argument < LEAST_MMU_PAGES {
        return Err(Errno::EINVAL);
    }
    Ok(0)
}

/// KVM_SET_TSS_ADDR: three pages below 4 GiB, which a processor with unrestricted guests does not need
/// (vmx_set_tss_addr).
pub fn set_tss_addr(_: &mut VmContext<'_>, _: User, argument: u64) -> Answer {
    if argument > u64::from(u32::MAX) + 1 - 3 * PAGE_SIZE {
        return Err(Errno::EINVAL);
    }
    Ok(0)
}

/// KVM_SET_IDENTITY_MAP_ADDR: needed as little, and too late behind the first vCPU.
pub fn set_identity_map_addr(context: &mut VmContext<'_>, user: User, argument: u64) -> Answer {
    let _: u64 = user.read(argument)?;
    if context.vm.vcpus.is_empty() {
        Ok(0)
    } else {
        Err(Errno::EINVAL)
    }
}

/// KVM_TRANSLATE (kvm_arch_vcpu_ioctl_translate).
pub fn translate(context: &mut VcpuContext<'_>, user: User, argument: u64) -> Answer {
    let mut request: kvm_translation = user.read(argument)?;
    let index = context.index;
    let physical = context.soft().translate(index, request.linear_address);
    request.physical_address = physical.map_or(u64::MAX, |address| address.0);
    request.valid = physical.is_some().into();
    request.writeable = 1;
    request.usermode = 0;
    user.write(argument, &request)?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;
    use crate::vm::Vm;

    const LOG: u32 = KVM_MEM_LOG_DIRTY_PAGES;
    const ROM: u32 = KVM_MEM_READONLY;
    /// Nobody looks behind it here.
    const HOST: u64 = 0x7000_0000_0000;

    fn region(slot: u32, flags: u32, start: u64, size: u64, host: u64) -> [u64; 4] {
        [u64::from(slot) | u64::from(flags) << 32, start, size, host]
    }

    fn set(vm: &Vm, region: &[u64; 4]) -> Answer {
        let address = std::ptr::from_ref(region) as u64;
        set_user_memory_region(&mut vm.lock().context(), User, address)
    }

    fn vm() -> Vm {
        Vm::new(&Settings::default()).expect("a VM")
    }

    #[test]
    fn regions_are_refused_as_the_kernel_refuses_them() {
        let vm = vm();
        let (invalid, exists) = (Err(Errno::EINVAL), Err(Errno::EEXIST));
        let smm = 1 << 16;
        let width = Settings::default().profile.model().physical_address_width;
        let cases = [
            ("flags", region(0, 4, 0, 0x1000, HOST), invalid),
            ("size", region(0, 0, 0, 0x1001, HOST), invalid),
            ("start", region(0, 0, 0x800, 0x1000, HOST), invalid),
            ("host", region(0, 0, 0, 0x1000, HOST + 8), invalid),
            (
                "host of the kernel",
                region(0, 0, 0, 0x1000, !0xfff),
                invalid,
            ),
            (
                "a slot too high",
                region(USER_SLOTS, 0, 0, 0x1000, HOST),
                invalid,
            ),
            (
                "a space too high",
                region(2 << 16, 0, 0, 0x1000, HOST),
                invalid,
            ),
            ("wraps", region(0, 0, !0xfff, 0x2000, HOST), invalid),
            ("too wide", region(0, 0, 1 << width, 0x1000, HOST), invalid),
            ("removes nothing", region(0, 0, 0, 0, HOST), invalid),
            ("made", region(0, 0, 0x1000, 0x4000, HOST), Ok(0)),
            ("again", region(0, 0, 0x1000, 0x4000, HOST), Ok(0)),
            ("other size", region(0, 0, 0x1000, 0x5000, HOST), invalid),
            ("other host", region(0, 0, 0x1000, 0x4000, 0x1000), invalid),
            ("read-only", region(0, ROM, 0x1000, 0x4000, HOST), invalid),
            ("logged", region(0, LOG, 0x1000, 0x4000, HOST), Ok(0)),
            ("overlap", region(1, 0, 0x4000, 0x1000, HOST), exists),
            ("beside", region(1, ROM, 0x5000, 0x1000, 0), Ok(0)),
            ("SMM's", region(smm, 0, 0x4000, 0x1000, HOST), Ok(0)),
            ("moves into it", region(1, ROM, 0x4000, 0x1000, 0), exists),
            ("moves", region(1, ROM, 0x6000, 0x1000, 0), Ok(0)),
            (
                "moves over itself",
                region(0, LOG, 0x2000, 0x4000, HOST),
                Ok(0),
            ),
            (
                "last",
                region(USER_SLOTS - 1, 0, 0x9000, 0x1000, HOST),
                Ok(0),
            ),
            ("removed", region(0, 0, 0, 0, 0), Ok(0)),
            ("removed again", region(0, 0, 0, 0, 0), invalid),
            ("SMM's removed", region(smm, 0, 0, 0, 0), Ok(0)),
        ];
        for (name, region, answer) in cases {
            assert_eq!(set(&vm, &region), answer, "{name}");
        }
        let mut state = vm.lock();
        assert_eq!(state.memory.pages, 2);
        let hostile = set_user_memory_region(&mut state.context(), User, 8);
        assert_eq!(hostile, Err(Errno::EFAULT));
    }

    #[test]
    fn the_dirty_log_is_read_and_cleared() {
        let vm = vm();
        let mut bitmap = [7_u64; 3];
        let address = bitmap.as_mut_ptr() as u64;
        let get = |slot: u64, address: u64| {
            let request = [slot, address];
            let at = std::ptr::from_ref(&request) as u64;
            get_dirty_log(&mut vm.lock().context(), User, at)
        };
        let clear = |slot: u64, first: u64, pages: u64| {
            let request = [slot | pages << 32, first, address];
            let at = std::ptr::from_ref(&request) as u64;
            clear_dirty_log(&mut vm.lock().context(), User, at)
        };
        assert_eq!(get(0, address), Err(Errno::ENOENT));
        assert_eq!(get(3 << 16, address), Err(Errno::EINVAL));
        assert_eq!(set(&vm, &region(0, 0, 0, 70 << 12, HOST)), Ok(0));
        assert_eq!(get(0, address), Err(Errno::ENOENT));
        // All pages dirty at the start.
        for (options, answer) in [(2, Err(Errno::EINVAL)), (4, Err(Errno::EINVAL)), (3, Ok(0))] {
            let request = kvm_enable_cap {
                args: [options, 0, 0, 0],
                ..Default::default()
            };
            let mut state = vm.lock();
            assert_eq!(
                enable_manual_protect(&mut state.context(), &request),
                answer
            );
        }
        assert_eq!(set(&vm, &region(0, LOG, 0, 70 << 12, HOST)), Ok(0));
        assert_eq!(get(0, address), Ok(0));
        assert_eq!(bitmap, [u64::MAX, 0x3f, 7]);
        assert_eq!(get(0, 8), Err(Errno::EFAULT));
        for (first, pages, answer) in [
            (1, 64, Err(Errno::EINVAL)),
            (0, 65, Err(Errno::EINVAL)),
            (64, 64, Err(Errno::EINVAL)),
            (128, 0, Err(Errno::EINVAL)),
            (64, 6, Ok(0)),
        ] {
            assert_eq!(clear(0, first, pages), answer, "{first} {pages}");
        }
        assert_eq!(get(0, address), Ok(0));
        // The bitmap's first word was for page 64 on.
        assert_eq!(bitmap, [u64::MAX, 0, 7]);
    }
}
