//! Nested state to and from the kernel's bytes, its fields, and the rules of KVM_SET_NESTED_STATE
//! (`arch/x86/kvm/vmx/nested.c`).
#![allow(missing_docs)]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nvmx_core::cpu::{Model, Personality};
use nvmx_core::memory::VecMemory;
use nvmx_core::nested::set_rules::{EntryCheck, EntryClass, SetContext, SetRefusal, check_bytes};
use nvmx_core::nested::{NestedState, specimen};
use nvmx_core::vmx::capability::{Capability, KVM_6_1_ICELAKE};
use nvmx_core::vmx::entry::checks::{self, Class};
use nvmx_core::vmx::vmcs12::Layout;
use nvmx_core::vmx::{Field, Vmcs12};
use std::hint::black_box;

fn codec(c: &mut Criterion) {
    let capability = Capability::new(&KVM_6_1_ICELAKE);
    let mut group = c.benchmark_group("nested state");
    for (name, state) in [
        ("vmcs12", specimen::guest_mode(capability)),
        (
            "vmcs12 and shadow",
            specimen::guest_mode_with_shadow(capability),
        ),
    ] {
        let bytes = state.to_bytes();
        assert_eq!(NestedState::from_bytes(&bytes).as_ref(), Ok(&state));
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(format!("decode, {name}"), |b| {
            b.iter(|| NestedState::from_bytes(black_box(&bytes)));
        });
        group.bench_function(format!("encode, {name}"), |b| {
            b.iter(|| black_box(&state).to_bytes());
        });
    }
    group.finish();
}

fn fields(c: &mut Criterion) {
    let mut vmcs12 = specimen::vmcs12(Capability::new(&KVM_6_1_ICELAKE));
    let fields: Vec<Field> = vmcs12.iter().map(|(field, _)| field).collect();
    let mut group = c.benchmark_group("vmcs12");
    group.bench_function("read a field", |b| {
        b.iter(|| black_box(&vmcs12).get(black_box(Field::GUEST_RIP)));
    });
    group.bench_function("write a field", |b| {
        b.iter(|| vmcs12.set(black_box(Field::GUEST_RIP), black_box(0x1000)));
    });
    group.throughput(Throughput::Elements(fields.len() as u64));
    group.bench_function("read every field", |b| {
        b.iter(|| fields.iter().fold(0, |sum, field| sum ^ vmcs12.get(*field)));
    });
    group.finish();
}

fn rules(c: &mut Criterion) {
    let memory = VecMemory::new(0x1_0000);
    let model = Model {
        vmx_msrs: KVM_6_1_ICELAKE,
        physical_address_width: 40,
        linear_address_width: 48,
        personality: Personality::Kvm,
        ..Model::default()
    };
    let entry_checks = |vmcs12: &Vmcs12, run_pending| {
        let context = checks::Context {
            vmcs12,
            model: &model,
            memory: &memory,
            current: Some(specimen::VMCS12),
            l1_long_mode: true,
            smm: false,
        };
        checks::kvm_restore_checks(&context, run_pending).map_err(|rule| EntryCheck {
            class: match rule.class {
                Class::InvalidControl => EntryClass::Controls,
                Class::InvalidHostState => EntryClass::HostState,
                Class::InvalidGuestState(_) => EntryClass::GuestState,
            },
            detail: rule.id.to_owned(),
        })
    };
    let context = SetContext {
        guest_has_vmx: true,
        in_smm: false,
        in_guest_mode: false,
        physical_address_width: 40,
        enlightened_vmcs_enabled: false,
        layout: Layout::Linux6_1,
        entry_checks: &entry_checks,
    };
    let accepted = specimen::guest_mode(Capability::new(&KVM_6_1_ICELAKE)).to_bytes();
    assert!(check_bytes(&accepted, &context).is_ok());
    let mut group = c.benchmark_group("KVM_SET_NESTED_STATE rules");
    group.bench_function("accepted", |b| {
        b.iter(|| check_bytes(black_box(&accepted), &context).is_ok());
    });
    for (name, rule) in [
        ("refused by the first rule", SetRefusal::SizeBelowHeader),
        (
            "refused by a guest-state check",
            SetRefusal::EntryGuestState,
        ),
    ] {
        let bytes = specimen::breaking_blob(rule)
            .expect("a state breaks it")
            .bytes;
        assert_eq!(
            check_bytes(&bytes, &context).err().map(|e| e.rule),
            Some(rule)
        );
        group.bench_function(name, |b| {
            b.iter(|| check_bytes(black_box(&bytes), &context).is_ok());
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = nvmx_benches::criterion();
    targets = codec, fields, rules
}
criterion_main!(benches);
