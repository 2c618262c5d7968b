//! The `format` files of tracefs (Linux `Documentation/trace/events.rst`, "Event formats"): where
//! each field of a record lies, so that no kernel's layout is built in.

/// Where a field lies in a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Name.
    pub name: String,
    /// Offset in bytes.
    pub offset: usize,
    /// Size in bytes.
    pub size: usize,
    /// The field holds length and offset of the real data (`__data_loc`).
    pub data_loc: bool,
}

/// A `format` file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Format {
    /// Number of the event (zero for the page header, which has none).
    pub id: u16,
    /// Fields.
    pub fields: Vec<Field>,
}

impl Format {
    /// Reads the text; lines that say nothing known are skipped.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut format = Self::default();
        for line in text.lines() {
            if let Some(id) = line.strip_prefix("ID:") {
                format.id = id.trim().parse().unwrap_or(0);
            } else if let Some(field) = field(line) {
                format.fields.push(field);
            }
        }
        format
    }

    /// A number of up to eight bytes; `None` if the event has no such field or the record ends.
    #[must_use]
    pub fn number(&self, record: &[u8], name: &str) -> Option<u64> {
        let field = self.fields.iter().find(|f| f.name == name)?;
        let bytes = record.get(field.offset..field.offset.checked_add(field.size)?)?;
        if bytes.len() > 8 {
            return None;
        }
        let number = bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
        Some(number)
    }

    /// A string, without what follows its first NUL.
    #[must_use]
    pub fn string<'a>(&self, record: &'a [u8], name: &str) -> Option<&'a str> {
        let field = self.fields.iter().find(|f| f.name == name && f.data_loc)?;
        let location = self.number(record, &field.name)?;
        let (offset, length) = (
            (location & 0xffff) as usize,
            (location >> 16 & 0xffff) as usize,
        );
        let bytes = record.get(offset..offset + length)?;
        let bytes = bytes.split(|b| *b == 0).next()?;
        std::str::from_utf8(bytes).ok()
    }
}

/// `field:unsigned int exit_reason;  offset:8;  size:4;  signed:0;`
fn field(line: &str) -> Option<Field> {
    let mut parts = line.trim().split(';').map(str::trim);
    let declaration = parts.next()?.strip_prefix("field:")?;
    let name = declaration.split('[').next()?;
    // `__data_loc char[] msg` has its brackets before the name.
    let name = if declaration.starts_with("__data_loc") {
        declaration
    } else {
        name
    };
    let mut field = Field {
        name: name.trim_end().rsplit([' ', '*']).next()?.to_owned(),
        offset: 0,
        size: 0,
        data_loc: declaration.starts_with("__data_loc"),
    };
    for part in parts {
        match part.split_once(':') {
            Some(("offset", value)) => field.offset = value.trim().parse().ok()?,
            Some(("size", value)) => field.size = value.trim().parse().ok()?,
            _ => {}
        }
    }
    Some(field)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "name: kvm_nested_vmenter_failed\nID: 1407\nformat:\n\
        \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\
        \tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n\n\
        \tfield:__data_loc char[] msg;\toffset:8;\tsize:4;\tsigned:1;\n\
        \tfield:u32 err;\toffset:12;\tsize:4;\tsigned:0;\n\n\
        print fmt: \"%s%s\", __get_str(msg)\n";

    #[test]
    fn fields_are_found_by_name() {
        let format = Format::parse(TEXT);
        assert_eq!(format.id, 1407);
        let mut record = vec![0_u8; 16];
        record[4] = 7;
        record[8..12].copy_from_slice(&(5_u32 << 16 | 16).to_le_bytes());
        record[12] = 9;
        record.extend_from_slice(b"oops\0\0");
        assert_eq!(format.number(&record, "common_pid"), Some(7));
        assert_eq!(format.number(&record, "err"), Some(9));
        assert_eq!(format.string(&record, "msg"), Some("oops"));
        assert_eq!(format.number(&record, "nothing"), None);
        assert_eq!(format.number(&record[..14], "err"), None);
        assert_eq!(format.string(&record[..18], "msg"), None);
    }
}
