//! Areas of bytes: `struct kvm_xsave`, `kvm_fpu`, `kvm_lapic_state`.

use crate::refusal::{Invalid, require};
use kvm_bindings::{kvm_fpu, kvm_lapic_state, kvm_xsave};

/// Bytes of `struct kvm_xsave`, and what KVM_GET_XSAVE2 copies while no dynamic component is enabled.
pub const XSAVE_SIZE: usize = 4096;
/// Bytes of the register page of KVM_GET_LAPIC.
pub const LAPIC_SIZE: usize = 1024;
/// Bytes of the legacy region: an FXSAVE image (SDM Vol. 1 "Legacy Region of an XSAVE Area").
pub const FXSAVE_SIZE: usize = 512;
/// End of the XSAVE header.
const HEADER_END: usize = 576;
/// XSTATE_BV: x87 and SSE.
const X87_AND_SSE: u8 = 3;

/// `struct kvm_xsave` to bytes.
#[must_use]
pub fn xsave(kernel: &kvm_xsave) -> Vec<u8> {
    kernel.region.iter().flat_map(|w| w.to_le_bytes()).collect()
}

/// Bytes to `struct kvm_xsave`: all of it, or less from the front. An FXSAVE image alone says that x87
/// and SSE are there. `None` if it is shorter than that or too long.
#[must_use]
pub fn kernel_xsave(bytes: &[u8]) -> Option<kvm_xsave> {
    if !(FXSAVE_SIZE..=XSAVE_SIZE).contains(&bytes.len()) {
        return None;
    }
    let mut area = [0; XSAVE_SIZE];
    area[..bytes.len()].copy_from_slice(bytes);
    if bytes.len() < HEADER_END {
        area[FXSAVE_SIZE..HEADER_END].fill(0);
        area[FXSAVE_SIZE] = X87_AND_SSE;
    }
    let mut kernel = kvm_xsave::default();
    for (word, chunk) in kernel.region.iter_mut().zip(area.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(*chunk);
    }
    Some(kernel)
}

/// The XSAVE area as KVM_SET_XSAVE takes it (`fpu_copy_uabi_to_guest_fpstate`): `supported` are the components
/// that there are; one whose bit in XSTATE_BV is clear is in its initial state.
pub fn checked_xsave(area: &[u8; XSAVE_SIZE], supported: u64) -> Result<Vec<u8>, Invalid> {
    /// Bits of MXCSR that exist, denormals-are-zeros included.
    const MXCSR_MASK: u64 = 0xffff;
    let u64_at = |at: usize| {
        area[at..]
            .first_chunk()
            .map_or(0, |b| u64::from_le_bytes(*b))
    };
    let present = u64_at(FXSAVE_SIZE);
    require(present & !(supported | u64::from(X87_AND_SSE)) == 0)?;
    // XCOMP_BV and the reserved bytes.
    require(
        area[FXSAVE_SIZE + 8..HEADER_END]
            .iter()
            .all(|byte| *byte == 0),
    )?;
    require(u64_at(at::MXCSR) & 0xffff_ffff & !MXCSR_MASK == 0)?;
    let mut taken = area.to_vec();
    if present & 1 == 0 {
        taken[..at::MXCSR].fill(0);
        taken[at::FCW..at::FSW].copy_from_slice(&0x37f_u16.to_le_bytes());
        taken[at::ST..at::XMM].fill(0);
    }
    if present & 2 == 0 {
        taken[at::XMM..at::XMM + 256].fill(0);
        // MXCSR belongs to SSE and to what comes behind it.
        taken[at::MXCSR..at::MXCSR + 4].copy_from_slice(&0x1f80_u32.to_le_bytes());
    }
    Ok(taken)
}

/// `struct kvm_lapic_state` to the register page.
#[must_use]
pub fn lapic(kernel: &kvm_lapic_state) -> Vec<u8> {
    kernel.regs.iter().map(|byte| *byte as u8).collect()
}

/// The register page to `struct kvm_lapic_state`; `None` if it has another size.
#[must_use]
pub fn kernel_lapic(page: &[u8]) -> Option<kvm_lapic_state> {
    if page.len() != LAPIC_SIZE {
        return None;
    }
    let mut kernel = kvm_lapic_state::default();
    for (to, from) in kernel.regs.iter_mut().zip(page) {
        *to = *from as _;
    }
    Some(kernel)
}

/// Where `struct kvm_fpu`'s parts stand in an FXSAVE image (SDM Vol. 1 "FXSAVE Area").
mod at {
    pub(super) const FCW: usize = 0;
    pub(super) const FSW: usize = 2;
    pub(super) const FTW: usize = 4;
    pub(super) const FOP: usize = 6;
    pub(super) const FIP: usize = 8;
    pub(super) const FDP: usize = 16;
    pub(super) const MXCSR: usize = 24;
    pub(super) const ST: usize = 32;
    pub(super) const XMM: usize = 160;
}

/// `struct kvm_fpu` out of an FXSAVE image.
#[must_use]
pub fn kernel_fpu(image: &[u8; FXSAVE_SIZE]) -> kvm_fpu {
    let u16_at = |at: usize| u16::from_le_bytes([image[at], image[at + 1]]);
    let u64_at = |at: usize| {
        image[at..]
            .first_chunk()
            .map_or(0, |b| u64::from_le_bytes(*b))
    };
    let mut fpu = kvm_fpu {
        fcw: u16_at(at::FCW),
        fsw: u16_at(at::FSW),
        ftwx: image[at::FTW],
        last_opcode: u16_at(at::FOP),
        last_ip: u64_at(at::FIP),
        last_dp: u64_at(at::FDP),
        mxcsr: u64_at(at::MXCSR) as u32,
        ..Default::default()
    };
    for (to, from) in fpu.fpr.iter_mut().zip(image[at::ST..].as_chunks::<16>().0) {
        *to = *from;
    }
    for (to, from) in fpu.xmm.iter_mut().zip(image[at::XMM..].as_chunks::<16>().0) {
        *to = *from;
    }
    fpu
}

/// Writes `struct kvm_fpu` over the parts of an FXSAVE image that it has, as KVM_SET_FPU does.
pub fn set_fpu(image: &mut [u8; FXSAVE_SIZE], fpu: &kvm_fpu) {
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(at::FCW, &fpu.fcw.to_le_bytes());
    put(at::FSW, &fpu.fsw.to_le_bytes());
    put(at::FTW, &[fpu.ftwx, 0]);
    put(at::FOP, &fpu.last_opcode.to_le_bytes());
    put(at::FIP, &fpu.last_ip.to_le_bytes());
    put(at::FDP, &fpu.last_dp.to_le_bytes());
    for (number, register) in fpu.fpr.iter().enumerate() {
        put(at::ST + 16 * number, register);
    }
    for (number, register) in fpu.xmm.iter().enumerate() {
        put(at::XMM + 16 * number, register);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_fxsave_image_alone_says_what_is_in_it() {
        let kernel = kernel_xsave(&[7; FXSAVE_SIZE]).expect("the legacy region");
        let bytes = xsave(&kernel);
        assert_eq!(bytes[..FXSAVE_SIZE], [7; FXSAVE_SIZE]);
        assert_eq!(bytes[FXSAVE_SIZE..FXSAVE_SIZE + 8], 3u64.to_le_bytes());
        assert!(kernel_xsave(&[0; FXSAVE_SIZE - 1]).is_none());
        assert!(kernel_xsave(&[0; XSAVE_SIZE + 1]).is_none());
    }

    #[test]
    fn the_floating_point_state_survives() {
        let mut image = [0; FXSAVE_SIZE];
        for (number, byte) in image.iter_mut().enumerate() {
            *byte = number as u8;
        }
        let fpu = kernel_fpu(&image);
        let mut other = image;
        // MXCSR is read and, as in KVM, not written.
        other[at::FCW..at::MXCSR].fill(0xee);
        other[at::ST..at::XMM + 256].fill(0xee);
        set_fpu(&mut other, &fpu);
        image[at::FTW + 1] = 0;
        assert_eq!(other, image);
    }

    #[test]
    fn components_that_are_not_there_are_initial() {
        let mut area = [7; XSAVE_SIZE];
        area[FXSAVE_SIZE..HEADER_END].fill(0);
        area[at::MXCSR..at::MXCSR + 4].copy_from_slice(&0x1f80_u32.to_le_bytes());
        let taken = checked_xsave(&area, 0).expect("valid");
        assert_eq!(taken[..2], [0x7f, 3]);
        assert_eq!(taken[at::XMM], 0);
        area[FXSAVE_SIZE] = 3;
        assert_eq!(checked_xsave(&area, 0).expect("valid"), area);
        for (place, byte) in [(FXSAVE_SIZE, 7), (FXSAVE_SIZE + 9, 1), (at::MXCSR + 2, 1)] {
            let mut broken = area;
            broken[place] = byte;
            assert_eq!(checked_xsave(&broken, 3), Err(Invalid), "{place}");
        }
    }

    #[test]
    fn a_register_page_has_one_size() {
        let page: Vec<u8> = (0..LAPIC_SIZE).map(|n| n as u8).collect();
        let kernel = kernel_lapic(&page).expect("a page");
        assert_eq!(lapic(&kernel), page);
        assert!(kernel_lapic(&page[1..]).is_none());
    }
}
