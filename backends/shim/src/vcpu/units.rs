//! x87, SSE and what XSAVE adds: KVM_{GET,SET}_{FPU,XSAVE,XCRS}, KVM_GET_XSAVE2. Components beyond x87 and SSE
//! have no state in the model, so that the area never is larger than `struct kvm_xsave`.

use crate::errno::{Answer, Errno};
use crate::os::User;
use crate::vcpu::VcpuContext;
use kvm_bindings::{kvm_fpu, kvm_xcrs};
use nvmx_abi::areas::{self, FXSAVE_SIZE, XSAVE_SIZE};
use nvmx_abi::refusal;
use nvmx_core::x86::{CpuState, cpuid, xsave};

fn image(context: &mut VcpuContext<'_>) -> Result<[u8; FXSAVE_SIZE], Errno> {
    let area = context.model().xsave_area();
    area.first_chunk().copied().ok_or(Errno::EIO)
}

/// KVM_GET_FPU.
pub fn get_fpu(context: &mut VcpuContext<'_>, user: User, argument: u64) -> Answer {
    let image = image(context)?;
    user.write(argument, &areas::kernel_fpu(&image))?;
    Ok(0)
}

/// KVM_SET_FPU, which leaves MXCSR alone (kvm_arch_vcpu_ioctl_set_fpu).
pub fn set_fpu(context: &mut VcpuContext<'_>, user: User, argument: u64) -> Answer {
    let fpu: kvm_fpu = user.read(argument)?;
    let mut image = image(context)?;
    areas::set_fpu(&mut image, &fpu);
    put_area(context, image.to_vec())
}

fn put_area(context: &mut VcpuContext<'_>, area: Vec<u8>) -> Answer {
    context.set_state(&CpuState {
        xsave: Some(area),
        ..CpuState::default()
    })?;
    Ok(0)
}

/// KVM_GET_XSAVE and KVM_GET_XSAVE2.
pub fn get_xsave(context: &mut VcpuContext<'_>, user: User, argument: u64) -> Answer {
    let area = context.model().xsave_area();
    user.write_bytes(argument, &area)?;
    Ok(0)
}

/// KVM_SET_XSAVE.
pub fn set_xsave(context: &mut VcpuContext<'_>, user: User, argument: u64) -> Answer {
    let mut area = [0; XSAVE_SIZE];
    user.read_bytes(argument, &mut area)?;
    let taken = areas::checked_xsave(&area, xsave::X87 | xsave::SSE)?;
    put_area(context, taken)
}

/// KVM_GET_XCRS.
pub fn get_xcrs(context: &mut VcpuContext<'_>, user: User, argument: u64) -> Answer {
    let mut kernel = kvm_xcrs {
        nr_xcrs: 1,
        ..Default::default()
    };
    kernel.xcrs[0].value = context.model().xcr0();
    user.write(argument, &kernel)?;
    Ok(0)
}

/// KVM_SET_XCRS: XCR0 alone, what the guest's CPUID has of it.
pub fn set_xcrs(context: &mut VcpuContext<'_>, user: User, argument: u64) -> Answer {
    let kernel: kvm_xcrs = user.read(argument)?;
    let supported = context.model().with_cpuid(|entries| {
        let [eax, .., edx] = cpuid::lookup(entries, 0xd, 0);
        u64::from(eax) | u64::from(edx) << 32
    });
    let offered = xsave::X87 | xsave::SSE;
    if let Some(xcr0) = refusal::xcr0(&kernel, supported & offered)? {
        context.set_state(&CpuState {
            xcr0: Some(xcr0),
            ..CpuState::default()
        })?;
    }
    Ok(0)
}
