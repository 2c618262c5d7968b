//! Streams that lie, break off, or speak nonsense: errors, never a panic or a huge allocation.

mod common;

use common::{an_entry, config, full_state, make, nested_bytes};
use nvmx_core::addr::L1Phys;
use nvmx_core::vcpu::{BackendError, Budget, Capability, Exit, Parts};
use nvmx_core::x86::Event;
use nvmx_core::x86::ownership::Level;
use nvmx_remote::bytes::{Bytes, Sparse};
use nvmx_remote::fault::Fault;
use nvmx_remote::message::{Request, Response, Seen, VcpuCall};
use nvmx_remote::wire::{self, FrameError, HEADER_SIZE, MAX_PAYLOAD};
use nvmx_remote::{RemoteVm, agent};
use proptest::prelude::*;
use std::io::{self, Cursor, Read, Write};
use std::sync::{Arc, Mutex};

fn requests() -> Vec<Request> {
    let calls = [
        VcpuCall::State(Parts::All),
        VcpuCall::StateAndNested,
        VcpuCall::SetState(Box::new(full_state())),
        VcpuCall::NestedState,
        VcpuCall::SetNestedState(Bytes(nested_bytes(1))),
        VcpuCall::TryNestedBytes(Bytes(vec![1, 2, 3])),
        VcpuCall::RunUntilRunPending(5),
        VcpuCall::Level,
        VcpuCall::Run(Budget::nested_events(7)),
        VcpuCall::Step,
        VcpuCall::CompleteRead(u64::MAX),
        VcpuCall::Inject(Event::NMI),
    ];
    let calls = calls.map(|call| Request::Vcpu { index: 1, call });
    let mut all = vec![
        Request::Hello,
        Request::CreateVm(config()),
        Request::ReadMemory {
            address: L1Phys(0x1000),
            length: 77,
        },
        Request::WriteMemory {
            address: L1Phys(0x1000),
            contents: Sparse::new(&[1; 5000]),
        },
        Request::ReadPages(vec![1, 2, 3]),
        Request::DirtyPages,
    ];
    all.extend(calls);
    all.push(Request::DropVm);
    all
}

fn responses() -> Vec<Response> {
    let seen = Seen {
        events: Ok(vec![an_entry()]),
        lost: 1,
        level: Ok(Level::L2),
        registers: Ok(Box::new(full_state())),
    };
    vec![
        Response::Failed(Fault::Absent {
            capability: Capability::Smm,
            reason: "r".into(),
        }),
        Response::Hello {
            release: "0".into(),
        },
        Response::Done,
        Response::Memory(Sparse::new(&[1; 5000])),
        Response::Pages(vec![1, 2]),
        Response::State(Box::new(full_state())),
        Response::StateAndNested {
            state: Box::new(full_state()),
            nested: Ok(Bytes(nested_bytes(1))),
        },
        Response::Answer(-22),
        Response::Ran {
            exit: Exit::Hlt,
            seen: seen.clone(),
        },
        Response::Searched { found: true, seen },
    ]
}

/// A frame around any payload, with a right checksum: what a malicious peer sends.
fn framed(payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::from(wire::MAGIC);
    frame.extend_from_slice(&wire::VERSION.to_le_bytes());
    frame.extend_from_slice(&[0, 0]);
    frame.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&frame);
    hasher.update(payload);
    frame.extend_from_slice(&hasher.finalize().to_le_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// Reads from a buffer; what is written is gone.
struct Half(Cursor<Vec<u8>>);

impl Read for Half {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Half {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn serve(bytes: Vec<u8>) -> Result<(), BackendError> {
    agent::serve(Half(Cursor::new(bytes)), &mut make)
}

#[test]
fn messages_survive_the_wire() {
    for request in requests() {
        let frame = wire::encode(&request).unwrap();
        assert_eq!(wire::receive::<Request>(&mut &frame[..]).unwrap(), request);
    }
    for response in responses() {
        let frame = wire::encode(&response).unwrap();
        assert_eq!(
            wire::receive::<Response>(&mut &frame[..]).unwrap(),
            response
        );
    }
}

#[test]
fn each_lie_of_a_header_is_told() {
    let good = wire::encode(&Request::DirtyPages).unwrap();
    let receive = |frame: &[u8]| wire::receive::<Request>(&mut &frame[..]).unwrap_err();
    assert!(matches!(receive(&[]), FrameError::Closed));
    let spoilt = |at: usize, value: u8| {
        let mut frame = good.clone();
        frame[at] = value;
        receive(&frame)
    };
    assert!(matches!(spoilt(0, b'X'), FrameError::Magic(_)));
    assert!(matches!(spoilt(4, 9), FrameError::Version { theirs: 9 }));
    assert!(matches!(spoilt(6, 1), FrameError::Checksum { .. }));
    assert!(matches!(spoilt(11, 0x7f), FrameError::TooLong(_)));
    assert!(matches!(
        spoilt(12, good[12] ^ 1),
        FrameError::Checksum { .. }
    ));
    assert!(matches!(
        spoilt(HEADER_SIZE, good[HEADER_SIZE] ^ 1),
        FrameError::Checksum { .. }
    ));
    // The longest length that is allowed, and nothing behind it.
    let mut frame = good.clone();
    frame[8..12].copy_from_slice(&(MAX_PAYLOAD as u32).to_le_bytes());
    assert!(matches!(receive(&frame), FrameError::Io(_)));
    assert!(matches!(receive(&framed(&[])), FrameError::Payload(_)));
    let mut longer = good[HEADER_SIZE..].to_vec();
    longer.push(0);
    assert!(matches!(receive(&framed(&longer)), FrameError::Payload(_)));
}

#[test]
fn an_agent_survives_any_order_of_requests() {
    // Without CreateVm, twice, after DropVm, with a vCPU that is not there.
    let mut list = requests();
    list.extend(requests());
    list.push(Request::Vcpu {
        index: 2,
        call: VcpuCall::Level,
    });
    list.push(Request::ReadMemory {
        address: L1Phys(0),
        length: u32::MAX,
    });
    list.push(Request::ReadPages(vec![0; 5000]));
    list.push(Request::ReadPages(vec![u64::MAX]));
    for start in 0..list.len() {
        let stream = list[start..].iter();
        let bytes = stream.flat_map(|r| wire::encode(r).unwrap()).collect();
        serve(bytes).unwrap();
    }
}

#[test]
fn an_agent_cut_at_each_byte_ends() {
    let frames: Vec<Vec<u8>> = [
        Request::CreateVm(config()),
        Request::DirtyPages,
        Request::Vcpu {
            index: 0,
            call: VcpuCall::Run(Budget::UNLIMITED),
        },
    ]
    .iter()
    .map(|request| wire::encode(request).unwrap())
    .collect();
    let all = frames.concat();
    let mut borders = vec![0];
    for frame in &frames {
        borders.push(borders.last().unwrap() + frame.len());
    }
    for length in 0..=all.len() {
        let result = serve(all[..length].to_vec());
        assert_eq!(result.is_ok(), borders.contains(&length), "{length}");
    }
}

/// Records what the agent said.
struct Recording(std::os::unix::net::UnixStream, Arc<Mutex<Vec<u8>>>);

impl Read for Recording {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.0.read(buffer)?;
        self.1.lock().unwrap().extend_from_slice(&buffer[..count]);
        Ok(count)
    }
}

impl Write for Recording {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// One session: connect, run, read the state.
fn session(stream: impl Read + Write + Send + 'static) -> Result<(), BackendError> {
    use nvmx_core::vcpu::Vm as _;
    let mut vm = RemoteVm::connect(stream, "half a peer".into(), &config())?;
    vm.vcpu(0).run(Budget::UNLIMITED)?;
    vm.read_memory(L1Phys(0), &mut [0; 64])?;
    vm.dirty_pages().map(|_| ())
}

#[test]
fn a_client_cut_at_each_byte_names_the_peer() {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    std::thread::spawn(move || agent::serve(theirs, &mut make));
    let said = Arc::new(Mutex::new(Vec::new()));
    session(Recording(ours, Arc::clone(&said))).unwrap();
    let said = said.lock().unwrap().clone();
    // The last answer, to DropVm, is one that nobody misses.
    let farewell = wire::encode(&Response::Done).unwrap().len();
    for length in 0..said.len() - farewell {
        let error = session(Half(Cursor::new(said[..length].to_vec()))).unwrap_err();
        let BackendError::Connection { peer, .. } = &error else {
            panic!("{length}: {error:?}");
        };
        assert_eq!(peer, "half a peer", "{length}");
    }
    session(Half(Cursor::new(said))).unwrap();
}

#[test]
fn an_answer_of_the_wrong_kind_is_an_error() {
    let frames = [
        Response::Hello {
            release: "x".into(),
        },
        Response::Done,
    ];
    let bytes = frames
        .iter()
        .flat_map(|r| wire::encode(r).unwrap())
        .collect();
    let error = session(Half(Cursor::new(bytes))).unwrap_err();
    assert_eq!(
        error.to_string(),
        "connection to half a peer: answered Done to CreateVm"
    );
}

/// A valid payload with some bytes changed and its end perhaps cut.
fn mutated(payloads: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let changes = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    let cut = prop::option::of(any::<prop::sample::Index>());
    (prop::sample::select(payloads), changes, cut).prop_map(|(mut bytes, changes, cut)| {
        for (at, value) in changes {
            if !bytes.is_empty() {
                let at = at.index(bytes.len().min(64));
                bytes[at] = value;
            }
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len() + 1));
        }
        bytes
    })
}

fn payloads<T: serde::Serialize>(messages: &[T]) -> Vec<Vec<u8>> {
    let payload = |m: &T| wire::encode(m).unwrap()[HEADER_SIZE..].to_vec();
    messages.iter().map(payload).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn mutated_requests_never_panic(payload in mutated(payloads(&requests()))) {
        let mut bytes = wire::encode(&Request::CreateVm(config())).unwrap();
        bytes.extend(framed(&payload));
        let _ = serve(bytes);
    }

    #[test]
    fn mutated_responses_never_panic(payload in mutated(payloads(&responses()))) {
        if let Ok(Response::Memory(sparse)) = wire::receive(&mut &framed(&payload)[..]) {
            let _ = sparse.expand();
        }
    }

    #[test]
    fn mutated_frames_never_panic(frame in mutated(requests().iter().map(|r| wire::encode(r).unwrap()).collect())) {
        let _ = wire::receive::<Request>(&mut &frame[..]);
        let _ = serve(frame);
    }

    #[test]
    fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = serve(noise.clone());
        let _ = serve(framed(&noise));
    }
}
