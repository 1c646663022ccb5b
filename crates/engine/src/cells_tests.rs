use proptest::prelude::*;

use super::*;

fn row(is_half: bool, numbers: u32) -> Row {
    Row { is_half, numbers }
}

fn layout(streams: u32, transposed: bool, layers: &[(u32, u32)], caches: usize) -> Layout {
    let layer = |(at, (key, value)): (usize, &(u32, u32))| Layer {
        key: row(at % 3 > 0, *key),
        value: row(at % 2 == 0, *value),
    };
    let layers: Vec<Layer> = layers.iter().enumerate().map(layer).collect();
    Layout { streams, caches: vec![Cache { transposed, rotated: [0, 64], layers }; caches] }
}

fn cells(layout: &Layout, count: usize) -> Vec<u8> {
    // Small numbers, all different, none of which is infinite as half or single.
    (0..layout.cell_bytes() * count).map(|at| if at % 2 == 1 { 0x30 } else { at as u8 }).collect()
}

#[test]
fn a_state_is_laid_out_as_llama_cpp_lays_it_out() {
    let layout = layout(2, true, &[(1, 2)], 1);
    // One f32 as the key, two f16 as the value; two cells.
    let cells = [1, 2, 3, 4, 11, 12, 13, 14, 5, 6, 7, 8, 15, 16, 17, 18];
    let state = layout.state(1, &cells);
    let word = |number: u32| number.to_le_bytes().to_vec();
    let expected = [
        [MAGIC, 1, 2, 0, 2].map(word).concat(),
        [0, 1, 1, 1, 1, 1].map(word).concat(),
        [1, 1, 0, 64].map(word).concat(),
        [F32, 4, 0].map(word).concat(),
        vec![1, 2, 3, 4, 5, 6, 7, 8],
        [F16, 2, 2].map(word).concat(),
        vec![11, 12, 15, 16, 13, 14, 17, 18],
    ]
    .concat();
    assert_eq!(state, expected);
}

#[test]
fn numbers_that_are_none_are_refused_wherever_they_lie() {
    let layout = layout(1, false, &[(2, 3), (3, 1), (1, 1)], 1);
    let good = cells(&layout, 3);
    assert_eq!(layout.check(&good), Ok(3));
    for cell in 0..3 {
        for (row, at) in layout.rows() {
            for number in (at..at + row.bytes()).step_by(row.number_bytes()) {
                let (mut bad, last) = (good.clone(), cell * layout.cell_bytes() + number + row.number_bytes() - 1);
                (bad[last - 1], bad[last]) = (0x80, 0x7f);
                assert_eq!(layout.check(&bad), Err(CellsError::NotFinite), "{row:?} at {number}");
            }
        }
    }
    assert_eq!(layout.check(&good[..good.len() - 1]), Err(CellsError::NotWhole));
    assert_eq!(layout.check(&[]), Err(CellsError::NotWhole));
}

#[test]
fn what_holds_anything_but_keys_and_values_is_not_moved() {
    let good = layout(2, true, &[(4, 4)], 1).state(0, &cells(&layout(2, true, &[(4, 4)], 1), 1));
    assert!(Layout::learn(&good, 0).is_ok());
    assert_eq!(Layout::learn(&good, 1), Err(CellsError::Unknown), "in another slot");
    let quantised = {
        let mut state = good.clone();
        let at = state.len() - 4 * 4 - 12 - 4 * 4 - 12 + 4 * 2;
        state[at..at + 4].copy_from_slice(&8_u32.to_le_bytes());
        state
    };
    assert!(Layout::learn(&quantised, 0).is_err());
    assert!(Layout::learn(&[good, vec![0; 4]].concat(), 0).is_err());
}

fn layouts() -> impl Strategy<Value = (Layout, u32)> {
    let layers = prop::collection::vec((1_u32..9, 1_u32..9), 1..4);
    (1_u32..5, any::<bool>(), layers, 1_usize..3, any::<prop::sample::Index>()).prop_map(
        |(streams, transposed, layers, caches, slot)| {
            (layout(streams, transposed, &layers, caches), slot.index(streams as usize) as u32)
        },
    )
}

proptest! {
    #[test]
    fn cells_survive_a_state_and_a_layout_is_learned_from_one((layout, slot) in layouts(), count in 1_usize..9) {
        let cells = cells(&layout, count);
        prop_assert_eq!(layout.check(&cells), Ok(count as u32));
        let state = layout.state(slot, &cells);
        prop_assert_eq!(layout.cells(&state, slot, count as u32), Ok(cells.clone()));
        let learned = Layout::learn(&layout.state(slot, &cells[..layout.cell_bytes()]), slot);
        prop_assert_eq!(learned, Ok(layout));
    }

    /// Whatever changes beside the numbers is noticed, and so is every byte too many or too few.
    #[test]
    fn no_byte_of_the_structure_can_differ(
        (layout, slot) in layouts(), count in 1_usize..5, at in any::<prop::sample::Index>(), bit in 0_u32..8,
    ) {
        let cells = cells(&layout, count);
        let good = layout.state(slot, &cells);
        let at = at.index(good.len());
        let mut bad = good.clone();
        bad[at] ^= 1 << bit;
        match layout.cells(&bad, slot, count as u32) {
            Err(CellsError::OtherLayout) => {}
            Ok(other) => {
                let differ = other.iter().zip(&cells).filter(|(a, b)| a != b).count();
                prop_assert_eq!(differ, 1, "a number changed, and nothing else");
            }
            Err(other) => prop_assert!(false, "{other:?}"),
        }
        prop_assert_eq!(layout.cells(&good[..at], slot, count as u32), Err(CellsError::OtherLayout));
        let longer = [&good[..], &[0]].concat();
        prop_assert_eq!(layout.cells(&longer, slot, count as u32), Err(CellsError::OtherLayout));
        prop_assert!(layout.cells(&good, slot, count as u32 + 1).is_err());
    }

    #[test]
    fn any_bytes_are_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..200), slot in 0_u32..3) {
        if let Ok(layout) = Layout::learn(&bytes, slot) {
            prop_assert_eq!(layout.state(slot, &layout.cells(&bytes, slot, 1).unwrap_or_default()), bytes);
        }
    }
}
