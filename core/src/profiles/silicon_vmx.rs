//! VMX capability MSRs of Intel's servers. Nobody publishes all of them, so each row says what it
//! rests on; IA32_VMX_CR4_FIXED1 and IA32_VMX_VMCS_ENUM are computed.

use super::table::vmx;

const LOGGED: &str = "VirtualBox logs of Core processors from Skylake to Coffee Lake print this";
const APPENDIX_A: &str = "SDM appendix A.7 and A.8: PE, NE and PG, and VMXE, are fixed to 1";
const POSTED: &str = "derived: the logged value of Core processors, with posted interrupts (vmx flags of /proc/cpuinfo)";
const FLAGS: &str =
    "derived: the vmx flags that /proc/cpuinfo shows on such machines, and what CPUID has";
const TRUE_OF: &str =
    "derived: as without TRUE, the default1 class free where the logs have it free";
const TERTIARY: &str =
    "derived: the logged value, with tertiary controls (ipi_virt in /proc/cpuinfo)";
const CET: &str = "derived: the logged value, with any error code (SDM appendix A.1, since CET)";

vmx! {
    /// Skylake-SP (06_55H).
    SKYLAKE_SP:
    0x480 0x00da_0400_0000_0004 LOGGED;
    0x481 0x0000_00ff_0000_0016 POSTED;
    0x482 0xfff9_fffe_0401_e172 LOGGED;
    0x483 0x01ff_ffff_0003_6dff LOGGED;
    0x484 0x0003_ffff_0000_11ff LOGGED;
    0x485 0x0000_0000_7004_c1e7 LOGGED;
    0x486 0x0000_0000_8000_0021 APPENDIX_A;
    0x487 0x0000_0000_ffff_ffff APPENDIX_A;
    0x488 0x0000_0000_0000_2000 APPENDIX_A;
    0x48b 0x025f_7fff_0000_0000 FLAGS;
    0x48c 0x0000_0f01_0673_4141 FLAGS;
    0x48d 0x0000_00ff_0000_0016 POSTED;
    0x48e 0xfff9_fffe_0400_6172 LOGGED;
    0x48f 0x01ff_ffff_0003_6dfb LOGGED;
    0x490 0x0003_ffff_0000_11fb LOGGED;
    0x491 0x0000_0000_0000_0001 FLAGS;
}

vmx! {
    /// Ice Lake-SP (06_6AH).
    ICE_LAKE_SP:
    0x480 0x00da_0400_0000_0004 LOGGED;
    0x481 0x0000_00ff_0000_0016 POSTED;
    0x482 0xfff9_fffe_0401_e172 LOGGED;
    0x483 0x03ff_ffff_0003_6dff FLAGS;
    0x484 0x0007_ffff_0000_11ff FLAGS;
    0x485 0x0000_0000_7004_c1e7 LOGGED;
    0x486 0x0000_0000_8000_0021 APPENDIX_A;
    0x487 0x0000_0000_ffff_ffff APPENDIX_A;
    0x488 0x0000_0000_0000_2000 APPENDIX_A;
    0x48b 0x135f_ffff_0000_0000 FLAGS;
    0x48c 0x0000_0f01_0673_41c1 FLAGS;
    0x48d 0x0000_00ff_0000_0016 POSTED;
    0x48e 0xfff9_fffe_0400_6172 LOGGED;
    0x48f 0x03ff_ffff_0003_6dfb TRUE_OF;
    0x490 0x0007_ffff_0000_11fb TRUE_OF;
    0x491 0x0000_0000_0000_0001 FLAGS;
}

vmx! {
    /// Sapphire Rapids (06_8FH).
    SAPPHIRE_RAPIDS:
    0x480 0x01da_0400_0000_0004 CET;
    0x481 0x0000_00ff_0000_0016 POSTED;
    0x482 0xfffb_fffe_0401_e172 TERTIARY;
    0x483 0x7fff_ffff_0003_6dff FLAGS;
    0x484 0x007f_ffff_0000_11ff FLAGS;
    0x485 0x0000_0000_7004_c1e7 LOGGED;
    0x486 0x0000_0000_8000_0021 APPENDIX_A;
    0x487 0x0000_0000_ffff_ffff APPENDIX_A;
    0x488 0x0000_0000_0000_2000 APPENDIX_A;
    0x48b 0xcf7f_7fff_0000_0000 FLAGS;
    0x48c 0x0000_0f01_06f3_41c1 FLAGS;
    0x48d 0x0000_00ff_0000_0016 POSTED;
    0x48e 0xfffb_fffe_0400_6172 TERTIARY;
    0x48f 0x7fff_ffff_0003_6dfb TRUE_OF;
    0x490 0x007f_ffff_0000_11fb TRUE_OF;
    0x491 0x0000_0000_0000_0001 FLAGS;
    0x492 0x0000_0000_0000_0010 TERTIARY;
}
