//! [`Sent`]: the model in the hands of one thread after the other.

/// The model, of which one thread at a time holds every part.
pub struct Sent<T>(pub T);

// SAFETY: the model's counted references and pointers are all among its own parts, which move together
// under the VM's lock.
unsafe impl<T> Send for Sent<T> {}
