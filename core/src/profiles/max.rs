//! The profile `max`: everything that this model has a name for. What a backend does not carry out is
//! taken away again by [`super::Profile::for_soft`], so that a control that gets an implementation appears
//! by itself.

use super::table::{cpuid, vmx};

const ALL: &str = "every control that vmx/controls.rs names";
const SILICON: &str = "as on Sapphire Rapids";

cpuid! {
    /// Family, model and stepping of an Ice Lake; every feature that has a name.
    CPUID:
    0x0000_0000       0x0000_001f 0x756e_6547 0x6c65_746e 0x4965_6e69;
    0x0000_0001       0x0007_06e5 0x0001_0800 0xffff_fbff 0xbfeb_fbff;
    0x0000_0004 / 0   0x0000_0121 0x02c0_003f 0x0000_003f 0x0000_0000;
    0x0000_0004 / 1   0x0000_0122 0x01c0_003f 0x0000_003f 0x0000_0000;
    0x0000_0004 / 2   0x0000_0143 0x01c0_003f 0x0000_03ff 0x0000_0000;
    0x0000_0005       0x0000_0040 0x0000_0040 0x0000_0003 0x0000_0020;
    0x0000_0006       0x0000_0004 0x0000_0000 0x0000_0000 0x0000_0000;
    0x0000_0007 / 0   0x0000_0001 0xffff_ffff 0xfbc1_7ffe 0xffdd_4530;
    0x0000_0007 / 1   0x0800_0000 0x0000_0000 0x0000_0000 0x0000_0000;
    0x0000_000a       0x0730_0802 0x0000_0000 0x0000_0000 0x0000_0603;
    0x0000_000d / 0   0x0000_02e7 0x0000_0a88 0x0000_0a88 0x0000_0000;
    0x0000_000d / 1   0x0000_000f 0x0000_0988 0x0000_0100 0x0000_0000;
    0x8000_0000       0x8000_0008 0x0000_0000 0x0000_0000 0x0000_0000;
    0x8000_0001       0x0000_0000 0x0000_0000 0x0000_0121 0x2c10_0800;
    0x8000_0007       0x0000_0000 0x0000_0000 0x0000_0000 0x0000_0100;
    0x8000_0008       0x0000_392e 0x0000_0000 0x0000_0000 0x0000_0000;
}

vmx! {
    /// Every control, and what silicon has beside them.
    VMX:
    0x480 0x00da_1000_11e5_7ed0 "as on Ice Lake, but for a region that holds a vmcs12: error codes of injected events follow from the vector";
    0x481 0x0000_00ff_0000_0016 ALL;
    0x482 0xfffb_fffe_0401_e172 ALL;
    0x483 0xffff_ffff_0003_6dff ALL;
    0x484 0x00ff_ffff_0000_11ff ALL;
    0x485 0x0000_0000_7004_c1e0 "as on Sapphire Rapids, but the preemption timer counts every tick of the TSC, which is slow on soft";
    0x486 0x0000_0000_8000_0021 SILICON;
    0x487 0x0000_0000_ffff_ffff SILICON;
    0x488 0x0000_0000_0000_2000 SILICON;
    0x48b 0xdfff_ffff_0000_0000 ALL;
    0x48c 0x0000_0f01_06f3_41c1 SILICON;
    0x48d 0x0000_00ff_0000_0016 ALL;
    0x48e 0xfffb_fffe_0400_6172 ALL;
    0x48f 0xffff_ffff_0003_6dfb ALL;
    0x490 0x00ff_ffff_0000_11fb ALL;
    0x491 0x0000_0000_0000_0001 ALL;
    0x492 0x0000_0000_0000_01df ALL;
    0x493 0x0000_0000_0000_000f ALL;
}
