//! The other end of the wire: serves a local backend to one client.

use crate::bytes::{Bytes, MAX_TRANSFER, Sparse};
use crate::fault::Fault;
use crate::message::{Request, Response, Seen, VcpuCall};
use crate::wire::{self, FrameError};
use nvmx_core::addr::PAGE_SIZE;
use nvmx_core::nested::NestedState;
use nvmx_core::vcpu::{BackendError, Parts, Result, Vcpu, Vm, VmConfig};
use std::io::{Read, Write};

/// Serves until the client closes the stream; `make` makes the VM it asks for.
///
/// # Errors
/// The stream fails or carries nonsense. What fails in the backend goes to the client instead.
pub fn serve(
    mut stream: impl Read + Write,
    make: &mut dyn FnMut(&VmConfig) -> Result<Box<dyn Vm>>,
) -> Result<()> {
    let mut vm: Option<Box<dyn Vm>> = None;
    loop {
        let request = match wire::receive(&mut stream) {
            Ok(request) => request,
            Err(FrameError::Closed) => return Ok(()),
            Err(error) => {
                let error = connection(&error);
                // The client may still listen; if not, the first error is the one that counts.
                let _ = wire::send(&mut stream, &Response::Failed(error.clone()));
                return Err(error.into());
            }
        };
        let response = answer(request, &mut vm, make)
            .unwrap_or_else(|error| Response::Failed(Fault::from(error)));
        wire::send(&mut stream, &response).map_err(|e| BackendError::from(connection(&e)))?;
    }
}

fn connection(error: &FrameError) -> Fault {
    Fault::Connection {
        peer: "client".into(),
        message: error.to_string(),
    }
}

fn answer(
    request: Request,
    slot: &mut Option<Box<dyn Vm>>,
    make: &mut dyn FnMut(&VmConfig) -> Result<Box<dyn Vm>>,
) -> Result<Response> {
    if request == Request::Hello {
        return Ok(Response::Hello {
            release: env!("CARGO_PKG_VERSION").into(),
        });
    }
    if let Request::CreateVm(config) = &request {
        // The old one goes first: two may not fit.
        *slot = None;
        let vm = slot.insert(make(config)?);
        return Ok(Response::Created {
            capabilities: vm.capabilities().clone(),
            memory_size: vm.memory_size(),
            vcpus: vm.vcpu_count() as u32,
        });
    }
    if request == Request::DropVm {
        *slot = None;
        return Ok(Response::Done);
    }
    let vm = slot
        .as_deref_mut()
        .ok_or_else(|| BackendError::Other("there is no VM yet: CreateVm comes first".into()))?;
    Ok(match request {
        Request::ReadMemory { address, length } => {
            let length = limited(length as usize)?;
            let mut bytes = vec![0; length];
            vm.read_memory(address, &mut bytes)?;
            Response::Memory(Sparse::new(&bytes))
        }
        Request::WriteMemory { address, contents } => {
            let bytes = contents
                .expand()
                .ok_or_else(|| BackendError::Other("the contents to write are damaged".into()))?;
            vm.write_memory(address, &bytes)?;
            Response::Done
        }
        Request::ReadPages(pages) => {
            limited(pages.len().saturating_mul(PAGE_SIZE as usize))?;
            let limit = vm.memory_size() / PAGE_SIZE;
            if let Some(page) = pages.iter().find(|page| **page >= limit) {
                return Err(BackendError::Other(format!("page {page:#x} is not RAM")));
            }
            Response::Memory(Sparse::new(&vm.read_pages(&pages)?))
        }
        Request::DirtyPages => Response::Pages(vm.dirty_pages()?),
        Request::Vcpu { index, call } => {
            let index = index as usize;
            if index >= vm.vcpu_count() {
                return Err(BackendError::Other(format!("there is no vCPU {index}")));
            }
            vcpu_answer(call, vm.vcpu(index))?
        }
        Request::Hello | Request::CreateVm(_) | Request::DropVm => Response::Done,
    })
}

fn limited(length: usize) -> Result<usize> {
    if length > MAX_TRANSFER {
        return Err(BackendError::Other(format!(
            "{length} bytes in one request; at most {MAX_TRANSFER}"
        )));
    }
    Ok(length)
}

fn vcpu_answer(call: VcpuCall, vcpu: &mut dyn Vcpu) -> Result<Response> {
    Ok(match call {
        VcpuCall::State(parts) => Response::State(Box::new(vcpu.state(parts)?)),
        VcpuCall::StateAndNested => Response::StateAndNested {
            state: Box::new(vcpu.state(Parts::All)?),
            nested: nested(vcpu).map_err(Fault::from),
        },
        VcpuCall::SetState(state) => {
            vcpu.set_state(&state)?;
            Response::Done
        }
        VcpuCall::NestedState => Response::Nested(nested(vcpu)?),
        VcpuCall::SetNestedState(bytes) => {
            let state =
                NestedState::from_bytes(&bytes.0).map_err(|error| BackendError::NestedRefused {
                    rule: error.to_string(),
                    errno: libc::EFAULT,
                })?;
            vcpu.set_nested_state(&state)?;
            Response::Done
        }
        VcpuCall::TryNestedBytes(bytes) => Response::Answer(vcpu.try_nested_bytes(&bytes.0)?),
        VcpuCall::RunUntilRunPending(tries) => {
            let found = vcpu.run_until_run_pending(tries)?;
            Response::Searched {
                found,
                seen: seen(vcpu),
            }
        }
        VcpuCall::Level => Response::Level(vcpu.level()?),
        VcpuCall::Run(budget) => {
            let exit = vcpu.run(budget)?;
            Response::Ran {
                exit,
                seen: seen(vcpu),
            }
        }
        VcpuCall::Step => {
            let exit = vcpu.step()?;
            Response::Ran {
                exit,
                seen: seen(vcpu),
            }
        }
        VcpuCall::CompleteRead(value) => {
            vcpu.complete_read(value)?;
            Response::Done
        }
        VcpuCall::InjectSmi => {
            vcpu.inject_smi()?;
            Response::Done
        }
        VcpuCall::Inject(event) => {
            vcpu.inject(event)?;
            Response::Done
        }
    })
}

fn nested(vcpu: &mut dyn Vcpu) -> Result<Bytes> {
    Ok(Bytes(vcpu.nested_state()?.to_bytes()))
}

/// Collects what travels with a run. The run has happened: an error here is part of the answer.
fn seen(vcpu: &mut dyn Vcpu) -> Seen {
    let mut events = Vec::new();
    Seen {
        events: vcpu
            .drain_nested_events(&mut events)
            .map(|()| events)
            .map_err(Fault::from),
        lost: vcpu.lost_nested_events(),
        level: vcpu.level().map_err(Fault::from),
        registers: vcpu
            .state(Parts::Registers)
            .map(Box::new)
            .map_err(Fault::from),
    }
}
