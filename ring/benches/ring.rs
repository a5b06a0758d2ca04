//! The look-up of one key, the re-evaluation of 100,000 held keys, and the way in of a placement.
//!
//! Goals: a look-up in at most 20 ns among 10 slots and 300 ns among 200; at most 0.5 ms to re-evaluate 100,000 held keys
//! when one slot is added.

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ring::agreement::{Agreement, HashKey};
use ring::delta::Delta;
use ring::placement::{Predecessor, Table};
use ring::rendezvous::Rendezvous;
use ring::{Holder, KeyHash, KeyHasher, Owners, Placement, Slot, SlotId, Version};

const HELD: u32 = 100_000;

fn slots(n: u32) -> Owners {
    Rendezvous::new((0..n).map(|slot| (SlotId(slot), 1))).into()
}

fn hashes() -> Vec<KeyHash> {
    let hasher = KeyHasher::default();
    (0..HELD).map(|user| hasher.hash(format!("user-{user}").as_bytes())).collect()
}

fn look_up(c: &mut Criterion) {
    let mut group = c.benchmark_group("look_up");
    let hashes = hashes();
    for n in [10, 50, 200] {
        let ring = slots(n);
        let mut keys = hashes.iter().cycle();
        group.bench_function(BenchmarkId::from_parameter(n), |b| {
            b.iter(|| ring.owner(black_box(*keys.next().expect("endless"))));
        });
    }
    group.finish();
}

fn look_up_as_ingresses(c: &mut Criterion) {
    let mut group = c.benchmark_group("look_up_as");
    for (name, agreement) in [
        ("nginx", Agreement::NginxKetama),
        ("ingress_nginx", Agreement::IngressNginx),
        ("envoy_ring", Agreement::EnvoyRing { minimum_ring_size: 1_024 }),
        ("envoy_maglev", Agreement::EnvoyMaglev { table_size: 65_537 }),
        ("haproxy", Agreement::HAProxy { hash_key: HashKey::Id, weight: 1 }),
    ] {
        let hasher = KeyHasher::Agreed(agreement);
        let users: Vec<_> = (0..HELD).map(|user| hasher.hash(format!("user-{user}").as_bytes())).collect();
        for n in [10, 200] {
            let holder = |n| Holder { name: String::new(), uid: String::new(), address: format!("10.0.0.{n}:7480") };
            let slot = |n| Slot { id: SlotId(n), weight: 1, holder: Some(holder(n).into()) };
            let ring = Owners::new(&hasher, &(0..n).map(slot).collect::<Vec<_>>());
            let mut keys = users.iter().cycle();
            group.bench_function(BenchmarkId::new(name, n), |b| {
                b.iter(|| ring.owner(black_box(*keys.next().expect("endless"))));
            });
        }
    }
    group.finish();
}

fn hash(c: &mut Criterion) {
    let sip = KeyHasher::SipHash24("000102030405060708090a0b0c0d0e0f".to_owned().try_into().expect("32 digits"));
    let mut group = c.benchmark_group("hash");
    for (name, hasher) in [("xxh64", KeyHasher::Xxh64), ("siphash24", sip)] {
        group.bench_function(name, |b| b.iter(|| hasher.hash(black_box(b"user-4711"))));
    }
    group.finish();
}

fn re_evaluate(c: &mut Criterion) {
    let mut group = c.benchmark_group("re_evaluate_100000");
    group.throughput(Throughput::Elements(u64::from(HELD)));
    let hashes = hashes();
    for n in [10, 50, 200] {
        for (change, old, new) in [("added", slots(n), slots(n + 1)), ("removed", slots(n + 1), slots(n))] {
            let owners: Vec<Option<SlotId>> = hashes.iter().map(|hash| old.owner(*hash)).collect();
            let delta = Delta::between(&old, &new);
            group.bench_function(BenchmarkId::new(change, n), |b| {
                b.iter_batched_ref(
                    || owners.clone(),
                    |owners| {
                        for (hash, owner) in hashes.iter().zip(owners) {
                            *owner = owner.and_then(|owner| delta.owner(*hash, owner));
                        }
                    },
                    BatchSize::LargeInput,
                );
            });
        }
    }
    group.finish();
}

/// A placement in which the last of so many slots is new.
fn grown(slots: u32) -> Placement {
    let pod = |id: u32| Holder {
        name: format!("chat-6d4b75cb6d-{id:05}"),
        uid: format!("3f0e1c52-7a64-4a0e-9d6b-{id:012}"),
        address: format!("10.0.{}.{}:7480", id / 250, id % 250),
    };
    let table = |slots| Table {
        slots: (0..slots).map(|id| Slot { id: SlotId(id), weight: 1, holder: Some(pod(id).into()) }).collect(),
        ..Table::default()
    };
    let version = |epoch| Version { term: 1, epoch };
    let before = Predecessor { version: version(1), table: table(slots - 1) };
    Placement {
        pool_uid: "pool".into(),
        version: version(2),
        table: table(slots),
        predecessors: vec![before],
        ..Placement::default()
    }
}

fn take_in(c: &mut Criterion) {
    let mut group = c.benchmark_group("take_in");
    for n in [10, 1_000, 5_000] {
        let written = serde_json::to_vec(&grown(n)).expect("a placement can be written");
        group.bench_function(BenchmarkId::new("read", n), |b| {
            b.iter(|| serde_json::from_slice::<Placement>(black_box(&written)).expect("it can be read"));
        });
        group.bench_function(BenchmarkId::new("compile", n), |b| {
            b.iter_batched(|| grown(n), |placement| placement.compile().expect("it is right"), BatchSize::LargeInput);
        });
    }
    group.finish();
}

criterion_group!(benches, take_in, look_up, look_up_as_ingresses, hash, re_evaluate);
criterion_main!(benches);
