//! The text of a snapshot, in RON: versioned, every name the manual's or the kernel's, numbers in
//! hexadecimal. Guest memory stands beside it in a `.pages` file (see [`crate::pages_file`]).

mod cpu;
mod nested;

pub(crate) use cpu::msr_key;

use crate::hex::Hex;
use crate::model::{Meta, Snapshot, VcpuSnapshot};
use nested::NestedDoc;
use ron::extensions::Extensions;
use ron::ser::PrettyConfig;
use serde::{Deserialize, Serialize};

/// The version that this program writes, and the only one that it reads.
pub const FORMAT: u32 = 1;

/// More vCPUs than any machine of ours has.
const MAX_VCPUS: usize = 4096;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename = "Snapshot")]
struct Document {
    format: u32,
    #[serde(default)]
    meta: Meta,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    memory: Option<MemoryDoc>,
    vcpus: Vec<VcpuDoc>,
}

/// Where the memory is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MemoryDoc {
    /// Bytes of guest memory.
    pub(crate) size: Hex,
    /// Name of the file, in the same folder.
    pub(crate) pages: String,
    /// Its identity: the CRC-32 in its header.
    pub(crate) identity: Hex,
    /// The snapshot whose memory it is a delta of, in the same folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) base: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct VcpuDoc {
    #[serde(default, skip_serializing_if = "cpu::CpuDoc::is_empty")]
    cpu: cpu::CpuDoc,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nested: Option<NestedDoc>,
}

/// Why a text is no snapshot: where, and what is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TextError {
    pub(crate) place: String,
    pub(crate) reason: String,
}

/// The text of a snapshot.
pub(crate) fn to_text(
    snapshot: &Snapshot,
    memory: Option<MemoryDoc>,
) -> Result<String, ron::Error> {
    let document = Document {
        format: FORMAT,
        meta: snapshot.meta.clone(),
        memory,
        vcpus: snapshot
            .vcpus
            .iter()
            .map(|vcpu| VcpuDoc {
                cpu: (&vcpu.cpu).into(),
                nested: vcpu.nested.as_ref().map(NestedDoc::encode),
            })
            .collect(),
    };
    let config = PrettyConfig::new()
        .struct_names(false)
        .indentor("  ")
        .extensions(Extensions::IMPLICIT_SOME);
    let mut text = String::from("// nvmx snapshot; \"nvmx show FILE\" explains it.\n");
    text.push_str(&ron::ser::to_string_pretty(&document, config)?);
    text.push('\n');
    Ok(text)
}

/// The snapshot that a text describes, without its memory, and where that is.
pub(crate) fn from_text(text: &str) -> Result<(Snapshot, Option<MemoryDoc>), TextError> {
    // The version first: a later one may have fields that we do not know.
    #[derive(Deserialize)]
    struct Version {
        format: u32,
    }
    let options = || ron::Options::default().with_default_extension(Extensions::IMPLICIT_SOME);
    let at = |error: ron::error::SpannedError| TextError {
        place: format!(
            "line {}, column {}",
            error.span.start.line, error.span.start.col
        ),
        reason: error.code.to_string(),
    };
    if let Ok(version) = options().from_str::<Version>(text)
        && version.format != FORMAT
    {
        return Err(TextError {
            place: "format".into(),
            reason: format!(
                "version {}, this program reads {FORMAT}; use the nvmx that wrote it",
                version.format
            ),
        });
    }
    let document: Document = options().from_str(text).map_err(at)?;
    if document.vcpus.len() > MAX_VCPUS {
        return Err(TextError {
            place: "vcpus".into(),
            reason: format!(
                "{} of them, at most {MAX_VCPUS} are possible",
                document.vcpus.len()
            ),
        });
    }
    let vcpus = document
        .vcpus
        .iter()
        .enumerate()
        .map(|(index, vcpu)| read_vcpu(index, vcpu))
        .collect::<Result<_, _>>()?;
    let snapshot = Snapshot {
        meta: document.meta,
        vcpus,
        memory: None,
    };
    Ok((snapshot, document.memory))
}

fn read_vcpu(index: usize, vcpu: &VcpuDoc) -> Result<VcpuSnapshot, TextError> {
    let cpu = vcpu.cpu.read().map_err(|reason| TextError {
        place: format!("vcpus[{index}].cpu"),
        reason,
    })?;
    let wrong = |reason: String| TextError {
        place: format!("vcpus[{index}].nested"),
        reason,
    };
    let nested = match &vcpu.nested {
        Some(doc) => Some(doc.decode().map_err(wrong)?),
        None => None,
    };
    Ok(VcpuSnapshot { cpu, nested })
}
