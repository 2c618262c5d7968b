//! Guest memory as the rules see it, read-only.

use crate::pages::PageStore;
use nvmx_core::addr::L1Phys;
use nvmx_core::memory::{GuestMemory, NotRam};
use nvmx_core::vmx::Vmcs12;

/// Guest memory of a snapshot.
#[derive(Default)]
pub(super) struct Memory<'a> {
    pub(super) pages: Option<&'a PageStore>,
    /// The link pointer and what it leads to, for where guest memory was not captured.
    pub(super) shadow: Option<(L1Phys, &'a Vmcs12)>,
}

impl GuestMemory for Memory<'_> {
    fn read(&self, address: L1Phys, buffer: &mut [u8]) -> Result<(), NotRam> {
        let length = buffer.len();
        if let Some(pages) = self.pages {
            return pages
                .read(address.0, buffer)
                .ok_or(NotRam { address, length });
        }
        // Of the regions that rules look into, the shadow vmcs12 alone is part of nested state; the
        // rest reads as zeroes.
        buffer.fill(0);
        if let Some((link, shadow)) = self.shadow
            && address.page() == link
            && let Some(bytes) = shadow.bytes()[address.page_offset() as usize..].get(..length)
        {
            buffer.copy_from_slice(bytes);
        }
        Ok(())
    }

    fn write(&self, address: L1Phys, bytes: &[u8]) -> Result<(), NotRam> {
        Err(NotRam {
            address,
            length: bytes.len(),
        })
    }
}
