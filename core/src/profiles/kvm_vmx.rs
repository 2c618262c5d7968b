//! VMX capability MSRs that KVM offers to L1 (`KVM_GET_MSRS` on the system: `nested_vmx_setup_ctls_msrs`).
//! KVM of Linux 6.12.117 gave the same numbers as 6.1.192 on the three models of Bochs 2.7.

use super::table::{by_number, vmx};
use crate::vmx::capability::MSR_COUNT;

const ASKED: &str = "KVM_GET_MSRS on /dev/kvm in the lab";
const ASKED_3_0: &str = "KVM_GET_MSRS on /dev/kvm in Bochs 3.0";

/// What KVM offers to L1 on `icelake_u`, by `number - 0x480`.
pub const KVM_6_1_ICELAKE: [u64; MSR_COUNT] = by_number(ICELAKE_U);

vmx! {
    /// On `icelake_u`.
    ICELAKE_U:
    0x480 0x00d8_1000_11e5_7ed0 ASKED;
    0x481 0x0000_007f_0000_0016 ASKED;
    0x482 0xfff9_fffe_0401_e172 ASKED;
    0x483 0x007f_ffff_0003_6dff ASKED;
    0x484 0x0000_f3ff_0000_11ff ASKED;
    0x485 0x0000_0000_2000_0165 ASKED;
    0x486 0x0000_0000_8000_0021 ASKED;
    0x487 0x0000_0000_ffff_ffff ASKED;
    0x488 0x0000_0000_0000_2000 ASKED;
    0x489 0x0000_0000_0077_2fff ASKED;
    0x48a 0x0000_0000_0000_0032 ASKED;
    0x48b 0x0213_7bff_0000_0000 ASKED;
    0x48c 0x0000_0f01_0633_4041 ASKED;
    0x48d 0x0000_007f_0000_0016 ASKED;
    0x48e 0xfff9_fffe_0400_6172 ASKED;
    0x48f 0x007f_ffff_0003_6dfb ASKED;
    0x490 0x0000_f3ff_0000_11fb ASKED;
    0x491 0x0000_0000_0000_0001 ASKED;
}

vmx! {
    /// On `skylake_x`.
    SKYLAKE_X:
    0x480 0x00d8_1000_11e5_7ed0 ASKED;
    0x481 0x0000_007f_0000_0016 ASKED;
    0x482 0xf7f9_fffe_0401_e172 ASKED;
    0x483 0x007f_ffff_0003_6dff ASKED;
    0x484 0x0000_f3ff_0000_11ff ASKED;
    0x485 0x0000_0000_2000_0165 ASKED;
    0x486 0x0000_0000_8000_0021 ASKED;
    0x487 0x0000_0000_ffff_ffff ASKED;
    0x488 0x0000_0000_0000_2000 ASKED;
    0x489 0x0000_0000_0037_2fff ASKED;
    0x48a 0x0000_0000_0000_0032 ASKED;
    0x48b 0x0213_7bff_0000_0000 ASKED;
    0x48c 0x0000_0f01_0633_4041 ASKED;
    0x48d 0x0000_007f_0000_0016 ASKED;
    0x48e 0xf7f9_fffe_0400_6172 ASKED;
    0x48f 0x007f_ffff_0003_6dfb ASKED;
    0x490 0x0000_f3ff_0000_11fb ASKED;
    0x491 0x0000_0000_0000_0001 ASKED;
}

vmx! {
    /// On `tigerlake`.
    TIGERLAKE:
    0x480 0x00d8_1000_11e5_7ed0 ASKED;
    0x481 0x0000_007f_0000_0016 ASKED;
    0x482 0xfff9_fffe_0401_e172 ASKED;
    0x483 0x007f_ffff_0003_6dff ASKED;
    0x484 0x0000_f3ff_0000_11ff ASKED;
    0x485 0x0000_0000_2000_0165 ASKED;
    0x486 0x0000_0000_8000_0021 ASKED;
    0x487 0x0000_0000_ffff_ffff ASKED;
    0x488 0x0000_0000_0000_2000 ASKED;
    0x489 0x0000_0000_00f7_2fff ASKED;
    0x48a 0x0000_0000_0000_0032 ASKED;
    0x48b 0x0213_7bff_0000_0000 ASKED;
    0x48c 0x0000_0f01_0633_4041 ASKED;
    0x48d 0x0000_007f_0000_0016 ASKED;
    0x48e 0xfff9_fffe_0400_6172 ASKED;
    0x48f 0x007f_ffff_0003_6dfb ASKED;
    0x490 0x0000_f3ff_0000_11fb ASKED;
    0x491 0x0000_0000_0000_0001 ASKED;
}

vmx! {
    /// On `sapphire_rapids`.
    SAPPHIRE_RAPIDS:
    0x480 0x00d8_1000_11e5_7ed0 ASKED_3_0;
    0x481 0x0000_00ff_0000_0016 ASKED_3_0;
    0x482 0xfff9_fffe_0401_e172 ASKED_3_0;
    0x483 0x007f_ffff_0003_6dff ASKED_3_0;
    0x484 0x0000_f3ff_0000_11ff ASKED_3_0;
    0x485 0x0000_0000_2000_0165 ASKED_3_0;
    0x486 0x0000_0000_8000_0021 ASKED_3_0;
    0x487 0x0000_0000_ffff_ffff ASKED_3_0;
    0x488 0x0000_0000_0000_2000 ASKED_3_0;
    0x489 0x0000_0000_01f7_3fff ASKED_3_0;
    0x48a 0x0000_0000_0000_0032 ASKED_3_0;
    0x48b 0x0613_7bff_0000_0000 ASKED_3_0;
    0x48c 0x0000_0f01_0633_4041 ASKED_3_0;
    0x48d 0x0000_00ff_0000_0016 ASKED_3_0;
    0x48e 0xfff9_fffe_0400_6172 ASKED_3_0;
    0x48f 0x007f_ffff_0003_6dfb ASKED_3_0;
    0x490 0x0000_f3ff_0000_11fb ASKED_3_0;
    0x491 0x0000_0000_0000_0001 ASKED_3_0;
}
