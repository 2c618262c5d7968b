//! The VMCS field table (SDM Vol. 3C, appendix "Field Encoding in VMCS").

use serde::{Deserialize, Serialize};

/// A VMCS field by its encoding. An unknown encoding is data, not an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Field(pub u32);
