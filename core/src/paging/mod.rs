//! Guest paging (SDM Vol. 3A "Paging") as pure walks over guest memory.
