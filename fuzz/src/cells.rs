use layout::Layout;

/// The engine itself is not built for this.
#[path = "../../crates/engine/src/cells.rs"]
mod layout;

/// As one context wrote one cell, and four slots.
const KNOWN: &[u8] = include_bytes!("../corpus/cells/two-caches");

/// The bytes as what a context wrote for one cell, the first one naming the slot: a layout that is learned from it writes
/// the same again. And as cells that a peer sent: what is taken is whole and finite, and survives a state.
pub fn cells(data: &[u8]) {
    let Some((slot, state)) = data.split_first() else { return };
    let slot = u32::from(*slot);
    if let Ok(layout) = Layout::learn(state, slot) {
        let cell = layout.cells(state, slot, 1).expect("what was learned from it");
        assert_eq!(cell.len(), layout.cell_bytes());
        assert_eq!(layout.state(slot, &cell), state);
        assert!(layout.cell_bytes() == known().0.cell_bytes() || layout.id() != known().0.id());
        came(&layout, slot, data);
    }
    let (layout, slot) = known();
    came(&layout, slot, data);
}

fn known() -> (Layout, u32) {
    let (slot, state) = KNOWN.split_first().expect("a seed");
    let slot = u32::from(*slot);
    (Layout::learn(state, slot).expect("a layout"), slot)
}

fn came(layout: &Layout, slot: u32, cells: &[u8]) {
    let Ok(count) = layout.check(cells) else { return };
    assert!(count > 0 && count as usize * layout.cell_bytes() == cells.len());
    let state = layout.state(slot, cells);
    assert_eq!(layout.cells(&state, slot, count).as_deref(), Ok(cells));
    assert!(layout.cells(&state, slot, count + 1).is_err());
}
