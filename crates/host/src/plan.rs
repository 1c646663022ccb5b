//! What a node should make of a machine. Pure.

use serde::Serialize;

use crate::HostProfile;

/// Largest KV cache that is taken without the owner's word, in bytes.
const KV_BUDGET_BYTES_MAX: u64 = 768 * 1024 * 1024;
/// Share of the available memory for the KV cache without the owner's word, in percent.
const KV_PERCENT: u64 = 25;
/// Tokens that one session holds, where memory and model allow.
const CONTEXT_TOKENS: u32 = 4_096;
/// Shorter contexts answer nothing useful.
const CONTEXT_TOKENS_MIN: u32 = 512;
/// Contexts are multiples of this many tokens, as llama.cpp pads them.
const CONTEXT_STEP: u32 = 256;
const SLOTS_MAX: u32 = 8;
/// Above this many cores one is left to the rest of the machine.
const CORES_ALL_MAX: u32 = 4;
/// Slower than people read; such machines do light work.
const WORKER_DECODE_TOKENS_PER_S_MIN: f32 = 8.0;
/// What the engine needs besides weights and KV cache (compute buffers, process), in bytes.
const OVERHEAD_BYTES: u64 = 192 * 1024 * 1024;
/// And what a second model in the same process needs besides its own.
const OVERHEAD_BESIDE_BYTES: u64 = 64 * 1024 * 1024;

/// What a model takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ModelNeeds {
    pub weights_bytes: u64,
    pub kv_bytes_per_token: u64,
    pub trained_context_tokens: u32,
    /// Decode speed of one stream on this machine, where it was measured.
    pub decode_tokens_per_s: Option<f32>,
}

/// What the owner allows or fixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnerLimits {
    /// Share of the cores, 1 to 100.
    pub cpu_percent: u32,
    /// Share of the available memory, 1 to 100.
    pub memory_percent: u32,
    /// Most of it in bytes, whatever the percentage gives.
    pub memory_bytes: Option<u64>,
    pub threads: Option<u32>,
    pub slots: Option<u32>,
    pub context_tokens: Option<u32>,
    pub kv_budget_bytes: Option<u64>,
}

impl Default for OwnerLimits {
    fn default() -> Self {
        Self {
            cpu_percent: 100,
            memory_percent: 75,
            memory_bytes: None,
            threads: None,
            slots: None,
            context_tokens: None,
            kv_budget_bytes: None,
        }
    }
}

/// How to serve a model here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    pub threads: u32,
    /// Sessions that are computed at once.
    pub slots: u32,
    /// Tokens that each of them holds.
    pub context_tokens: u32,
    /// What slots and context take, in bytes.
    pub kv_budget_bytes: u64,
    pub role: Role,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Light models and audits.
    Edge,
    /// Heavy models and slices.
    Worker,
}

/// The model does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the model needs {needed_bytes} bytes of memory, {allowed_bytes} are allowed here ({} missing): \
     free memory, raise memory_percent, or lower slots or context_tokens",
    needed_bytes.saturating_sub(*allowed_bytes)
)]
pub struct Shortage {
    pub needed_bytes: u64,
    pub allowed_bytes: u64,
}

/// Threads, slots and context for one model.
///
/// # Errors
/// [`Shortage`]: weights and the smallest useful KV cache (or the one that the owner fixed) do not fit.
pub fn recommend(profile: &HostProfile, needs: &ModelNeeds, owner: &OwnerLimits) -> Result<Plan, Shortage> {
    let allowed_bytes = allowed(profile, owner);
    let weights = needs.weights_bytes.saturating_add(OVERHEAD_BYTES);
    let kv_room = allowed_bytes.saturating_sub(weights);
    let default_budget = (profile.memory.available_bytes / 100 * KV_PERCENT).min(KV_BUDGET_BYTES_MAX);
    let budget = owner.kv_budget_bytes.unwrap_or(default_budget).min(kv_room);
    let (slots, context_tokens) = shape(needs, owner, budget);
    let kv_budget_bytes =
        needs.kv_bytes_per_token.saturating_mul(u64::from(slots)).saturating_mul(u64::from(context_tokens));
    let needed_bytes = weights.saturating_add(kv_budget_bytes);
    if needed_bytes > allowed_bytes {
        return Err(Shortage { needed_bytes, allowed_bytes });
    }
    let role = needs.decode_tokens_per_s.map_or(Role::Worker, role_by_speed);
    Ok(Plan { threads: threads(profile, owner), slots, context_tokens, kv_budget_bytes, role })
}

/// Whether another model finds room beside one that is served by this plan, for as many and as long sessions.
///
/// # Errors
/// [`Shortage`], of both together.
pub fn room_beside(
    profile: &HostProfile,
    owner: &OwnerLimits,
    (served, plan): (&ModelNeeds, &Plan),
    other: &ModelNeeds,
) -> Result<(), Shortage> {
    let context = u64::from(plan.context_tokens.min(other.trained_context_tokens));
    let cells = u64::from(plan.slots).saturating_mul(context);
    let other_bytes = other.weights_bytes.saturating_add(other.kv_bytes_per_token.saturating_mul(cells));
    let served_bytes = served.weights_bytes.saturating_add(plan.kv_budget_bytes);
    let needed_bytes = served_bytes.saturating_add(other_bytes).saturating_add(OVERHEAD_BYTES + OVERHEAD_BESIDE_BYTES);
    let allowed_bytes = allowed(profile, owner);
    if needed_bytes > allowed_bytes { Err(Shortage { needed_bytes, allowed_bytes }) } else { Ok(()) }
}

fn allowed(profile: &HostProfile, owner: &OwnerLimits) -> u64 {
    let share = percent(profile.memory.available_bytes, owner.memory_percent);
    owner.memory_bytes.map_or(share, |bytes| bytes.min(share))
}

/// The role that a measured decode speed (tokens per second, one stream) earns.
pub fn role_by_speed(decode_tokens_per_s: f32) -> Role {
    if decode_tokens_per_s >= WORKER_DECODE_TOKENS_PER_S_MIN { Role::Worker } else { Role::Edge }
}

/// Slots and context: the owner's numbers as they are, the others as `budget` bytes allow.
fn shape(needs: &ModelNeeds, owner: &OwnerLimits, budget: u64) -> (u32, u32) {
    let trained = needs.trained_context_tokens.max(1);
    let tokens = budget / needs.kv_bytes_per_token.max(1);
    let fit = |per: u32| u32::try_from(tokens / u64::from(per.max(1))).unwrap_or(u32::MAX);
    let wanted = owner.context_tokens.unwrap_or(CONTEXT_TOKENS).clamp(1, trained);
    let slots = owner.slots.unwrap_or_else(|| fit(wanted).clamp(1, SLOTS_MAX)).max(1);
    let context = match owner.context_tokens {
        Some(_) => wanted,
        None => {
            let fitting = fit(slots) / CONTEXT_STEP * CONTEXT_STEP;
            fitting.clamp(CONTEXT_TOKENS_MIN, CONTEXT_TOKENS).min(trained)
        }
    };
    (slots, context)
}

/// Physical cores: hyperthreads slow the matrix kernels down.
fn threads(profile: &HostProfile, owner: &OwnerLimits) -> u32 {
    let usable = profile.cpu.usable_cores.max(1);
    if let Some(threads) = owner.threads {
        return threads.clamp(1, usable);
    }
    let cores = profile.cpu.physical_cores.clamp(1, usable);
    if owner.cpu_percent < 100 {
        return (cores * owner.cpu_percent.max(1) / 100).max(1);
    }
    if cores > CORES_ALL_MAX { cores - 1 } else { cores }
}

fn percent(bytes: u64, percent: u32) -> u64 {
    bytes / 100 * u64::from(percent.min(100))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{Cpu, Memory, Os};

    const GIB: u64 = 1 << 30;
    const SMOLLM2: ModelNeeds = ModelNeeds {
        weights_bytes: 98_362_432,
        kv_bytes_per_token: 23_040,
        trained_context_tokens: 8_192,
        decode_tokens_per_s: None,
    };

    fn machine(available_bytes: u64, physical_cores: u32, logical_cores: u32, usable_cores: u32) -> HostProfile {
        HostProfile {
            os: Os { family: "linux".into(), name: "Linux".into(), arch: "x86_64".into() },
            cpu: Cpu { brand: String::new(), physical_cores, logical_cores, usable_cores, features: vec![] },
            memory: Memory { total_bytes: 24 * GIB, available_bytes },
            disk: None,
            gpus: vec![],
            battery: None,
        }
    }

    #[test]
    fn the_default_model_gets_eight_slots_even_beside_other_nodes() {
        for available in [24 * GIB, 8 * GIB, 4 * GIB] {
            let plan = recommend(&machine(available, 2, 2, 2), &SMOLLM2, &OwnerLimits::default()).unwrap();
            assert_eq!((plan.slots, plan.context_tokens, plan.threads), (8, 4_096, 2));
            assert_eq!(plan.kv_budget_bytes, 8 * 4_096 * 23_040);
            assert!(plan.kv_budget_bytes <= KV_BUDGET_BYTES_MAX);
        }
    }

    #[test]
    fn little_memory_means_fewer_slots_then_shorter_contexts_then_no() {
        let plan = |available| recommend(&machine(available, 2, 2, 2), &SMOLLM2, &OwnerLimits::default());
        let small = plan(GIB).unwrap();
        assert_eq!((small.slots, small.context_tokens), (2, 4_096));
        let tiny = plan(420 << 20).unwrap();
        assert_eq!(tiny.slots, 1);
        assert!((CONTEXT_TOKENS_MIN..CONTEXT_TOKENS).contains(&tiny.context_tokens), "{tiny:?}");
        assert_eq!(tiny.context_tokens % CONTEXT_STEP, 0);
        let shortage = plan(300 << 20).unwrap_err();
        assert!(shortage.needed_bytes > shortage.allowed_bytes);
        let words = shortage.to_string();
        assert!(words.contains(&shortage.needed_bytes.to_string()) && words.contains("missing"), "{words}");
    }

    #[test]
    fn a_plan_never_takes_more_than_allowed() {
        for available in (0..200).map(|step| step * 37_000_000) {
            for percent in [1, 10, 75, 100] {
                let owner = OwnerLimits { memory_percent: percent, ..OwnerLimits::default() };
                let Ok(plan) = recommend(&machine(available, 8, 8, 8), &SMOLLM2, &owner) else { continue };
                assert!(plan.kv_budget_bytes + SMOLLM2.weights_bytes <= available / 100 * u64::from(percent));
                assert!(plan.slots >= 1 && plan.context_tokens >= CONTEXT_TOKENS_MIN);
            }
        }
    }

    #[test]
    fn threads_follow_cores_limits_and_the_owner() {
        let all = OwnerLimits::default();
        let threads = |machine: &HostProfile, owner: &OwnerLimits| recommend(machine, &SMOLLM2, owner).unwrap().threads;
        assert_eq!(threads(&machine(8 * GIB, 2, 4, 4), &all), 2);
        assert_eq!(threads(&machine(8 * GIB, 4, 8, 8), &all), 4);
        assert_eq!(threads(&machine(8 * GIB, 16, 32, 32), &all), 15);
        assert_eq!(threads(&machine(8 * GIB, 16, 32, 3), &all), 3);
        let half = OwnerLimits { cpu_percent: 50, ..all };
        assert_eq!(threads(&machine(8 * GIB, 16, 32, 32), &half), 8);
        assert_eq!(threads(&machine(8 * GIB, 1, 1, 1), &half), 1);
        let fixed = OwnerLimits { threads: Some(7), ..all };
        assert_eq!(threads(&machine(8 * GIB, 4, 8, 8), &fixed), 7);
        assert_eq!(threads(&machine(8 * GIB, 2, 2, 2), &fixed), 2);
    }

    #[test]
    fn the_owners_numbers_hold_or_are_refused() {
        let rich = machine(24 * GIB, 4, 4, 4);
        let owner = OwnerLimits { slots: Some(16), context_tokens: Some(8_192), ..OwnerLimits::default() };
        let plan = recommend(&rich, &SMOLLM2, &owner).unwrap();
        assert_eq!((plan.slots, plan.context_tokens), (16, 8_192));
        let absurd = OwnerLimits { slots: Some(256), context_tokens: Some(131_072), ..owner };
        assert!(recommend(&rich, &SMOLLM2, &absurd).unwrap_err().needed_bytes > 24 * GIB);
        let small_budget = OwnerLimits { kv_budget_bytes: Some(100 << 20), ..OwnerLimits::default() };
        let plan = recommend(&rich, &SMOLLM2, &small_budget).unwrap();
        assert_eq!((plan.slots, plan.context_tokens), (1, 4_096));
        let many_slots = OwnerLimits { slots: Some(16), ..OwnerLimits::default() };
        let plan = recommend(&rich, &SMOLLM2, &many_slots).unwrap();
        assert_eq!((plan.slots, plan.context_tokens), (16, 2_048));
    }

    #[test]
    fn a_second_model_fits_beside_the_first_or_its_lack_is_told() {
        let draft = ModelNeeds { weights_bytes: 10 << 20, kv_bytes_per_token: 1_000, ..SMOLLM2 };
        let sized = |megabytes: u64| {
            let owner = OwnerLimits {
                memory_bytes: Some(megabytes << 20),
                slots: Some(2),
                context_tokens: Some(1_024),
                ..OwnerLimits::default()
            };
            let machine = machine(8 * GIB, 2, 2, 2);
            let plan = recommend(&machine, &SMOLLM2, &owner).unwrap();
            assert_eq!((plan.slots, plan.context_tokens), (2, 1_024), "the first one keeps what it has");
            room_beside(&machine, &owner, (&SMOLLM2, &plan), &draft)
        };
        // 93.8 and 45 MiB of the first and 192 around it; 10, 2 and 64 of the second.
        assert_eq!(sized(410), Ok(()));
        let shortage = sized(400).unwrap_err();
        assert_eq!(shortage.allowed_bytes, 400 << 20);
        assert!((6 << 20..8 << 20).contains(&(shortage.needed_bytes - shortage.allowed_bytes)), "{shortage}");
    }

    #[test]
    fn contexts_stay_within_the_training() {
        let short = ModelNeeds { trained_context_tokens: 1_024, ..SMOLLM2 };
        let owner = OwnerLimits { context_tokens: Some(4_096), ..OwnerLimits::default() };
        assert_eq!(recommend(&machine(8 * GIB, 2, 2, 2), &short, &owner).unwrap().context_tokens, 1_024);
        let plan = recommend(&machine(8 * GIB, 2, 2, 2), &short, &OwnerLimits::default()).unwrap();
        assert_eq!((plan.slots, plan.context_tokens), (8, 1_024));
    }

    #[test]
    fn slow_machines_are_edges() {
        let slow = ModelNeeds { decode_tokens_per_s: Some(3.0), ..SMOLLM2 };
        let fast = ModelNeeds { decode_tokens_per_s: Some(80.0), ..SMOLLM2 };
        let role = |needs| recommend(&machine(8 * GIB, 2, 2, 2), &needs, &OwnerLimits::default()).unwrap().role;
        assert_eq!((role(slow), role(fast), role(SMOLLM2)), (Role::Edge, Role::Worker, Role::Worker));
    }
}
