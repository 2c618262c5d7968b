//! `nvmx lab`

use crate::args::{LabArguments, LabCommand, LabFetch, LabRun, LabUp};
use crate::lab::{LAB_KERNEL_VARIABLE, LAB_VARIABLE, LAB_VERSION_VARIABLE};
use crate::{SAME, TROUBLE, lab, output};
use anyhow::Context;
use nvmx_lab::{Kernel, Lab, LabStream};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::Duration;

pub(crate) fn run(options: &LabArguments) -> anyhow::Result<u8> {
    match &options.command {
        LabCommand::Up(options) => up(options),
        LabCommand::Run(options) => with_command(options),
        LabCommand::Fetch(options) => fetch(options),
    }
}

fn fetch(options: &LabFetch) -> anyhow::Result<u8> {
    let kernels = match options.kernel {
        Some(kernel) => vec![kernel],
        None => Kernel::ALL.to_vec(),
    };
    nvmx_lab::cache::install(&nvmx_lab::cache::default_dir(), &kernels)?;
    Ok(SAME)
}

/// Boots, and bridges a TCP port to the agent in a thread of its own.
fn open(kernel: Kernel, listen: &str) -> anyhow::Result<(Lab, String)> {
    let listener = TcpListener::bind(listen).with_context(|| format!("--listen {listen}"))?;
    let address = listener.local_addr().context("--listen")?.to_string();
    let bar = output::spinner("starting the lab");
    let mut lab = lab::start(Some(kernel), &bar)?;
    bar.finish_and_clear();
    let stream = lab.stream();
    thread::spawn(move || bridge(&listener, &stream));
    Ok((lab, address))
}

fn up(options: &LabUp) -> anyhow::Result<u8> {
    let (lab, address) = open(options.kernel, &options.listen)?;
    output::say(&format!(
        "lab with kernel {} is up after {:.1} s; use it with {LAB_VARIABLE}={address} or --backend remote:{address}; ^C ends it",
        lab.kernel_version(),
        lab.started_in().as_secs_f64()
    ));
    output::print(&format!("{address}\n"))?;
    loop {
        if let Some(error) = lab.failure() {
            return Err(error.into());
        }
        thread::sleep(Duration::from_millis(200));
    }
}

fn with_command(options: &LabRun) -> anyhow::Result<u8> {
    let (lab, address) = open(options.kernel, "127.0.0.1:0")?;
    let Some((program, arguments)) = options.command.split_first() else {
        anyhow::bail!("no command");
    };
    let status = Command::new(program)
        .args(arguments)
        .env(LAB_VARIABLE, &address)
        .env(LAB_KERNEL_VARIABLE, options.kernel.name())
        .env(LAB_VERSION_VARIABLE, lab.kernel_version())
        .status()
        .with_context(|| format!("{}: cannot be started", program.to_string_lossy()))?;
    let failure = lab.failure();
    lab.stop();
    if let Some(error) = failure {
        output::complain(&error.to_string());
    }
    // Ended by a signal: trouble.
    Ok(status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .unwrap_or(TROUBLE))
}

/// One client after the other; what the lab says while there is none belongs to one that has gone.
fn bridge(listener: &TcpListener, lab: &LabStream) {
    for client in listener.incoming() {
        let result = client.and_then(|client| serve(client, lab.clone()));
        if let Err(error) = result {
            tracing::warn!("lab client: {error}");
        }
    }
}

fn serve(mut client: TcpStream, lab: LabStream) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    let mut to_client = client.try_clone()?;
    let (mut from_lab, mut to_lab) = (lab.clone(), lab);
    // Short, so that the thread below notices when its client has gone.
    from_lab.set_timeout(Some(Duration::from_millis(50)));
    let (gone, is_gone) = std::sync::mpsc::channel::<()>();
    let answers = thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        loop {
            match from_lab.read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => {
                    if to_client.write_all(&buffer[..count]).is_err() {
                        return;
                    }
                }
                Err(e)
                    if matches!(
                        e.kind(),
                        std::io::ErrorKind::TimedOut | std::io::ErrorKind::WouldBlock
                    ) =>
                {
                    if is_gone.try_recv().is_ok() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!("lab: {error}");
                    let _ = to_client.shutdown(std::net::Shutdown::Both);
                    return;
                }
            }
        }
    });
    let mut buffer = vec![0; 64 << 10];
    let result = loop {
        match client.read(&mut buffer) {
            Ok(0) => break Ok(()),
            Ok(count) => {
                if let Err(error) = to_lab.write_all(&buffer[..count]) {
                    break Err(error);
                }
            }
            Err(error) => break Err(error),
        }
    };
    let _ = gone.send(());
    let _ = answers.join();
    result
}
