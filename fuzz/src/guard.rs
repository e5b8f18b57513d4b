//! What guards store: the list of what stood under their patterns, the index of their images, which has the same form,
//! and the notes of who has a guard and what runs under it.

use atomtree_recovery::guards::{Manifest, PatternTexts, Patterns, note};
use atomtree_vfs::Kind;

use super::records::{check_name, check_path};

/// Every pair of so many patterns is compared.
const PATTERNS_MAX: usize = 4;

/// A list or a note decodes or not; what comes out encodes to bytes that decode to the same, and names nothing outside.
pub fn guard(bytes: &[u8]) {
    list(bytes);
    list(&sealed(bytes));
    if let Ok(text) = str::from_utf8(bytes) {
        note_of(text);
    }
}

fn list(bytes: &[u8]) {
    let Ok(list) = Manifest::decode(bytes) else { return };
    assert_eq!(Manifest::decode(&list.encode()).as_ref(), Ok(&list));
    for original in &list.originals {
        check_path(&original.tree_path());
        assert_eq!(list.find(&original.path), Some(original));
        assert!(original.image_bytes() >= original.size);
        if let Some(image) = &original.image {
            check_name(image.name.as_bytes());
        }
        assert_eq!(original.kind() == Kind::Dir, original.image.is_none() && original.twin.is_none());
    }
    patterns(&list);
}

/// What two guards would both cover, they know of each other.
fn patterns(list: &Manifest) {
    let Ok(all) = Patterns::new(list.patterns.clone()) else { return };
    assert!(all.may_overlap(&all));
    let each = list.patterns.guarded.iter().take(PATTERNS_MAX);
    let alone = |text: &String| PatternTexts { guarded: vec![text.clone()], ignored: Vec::new() };
    let each: Vec<Patterns> = each.filter_map(|text| Patterns::new(alone(text)).ok()).collect();
    for original in &list.originals {
        let path = original.tree_path();
        let covering: Vec<_> = each.iter().filter(|patterns| patterns.concerns(&path, false)).collect();
        for one in &covering {
            assert!(covering.iter().all(|other| one.may_overlap(other)), "{path:?}: {:?}", list.patterns);
        }
    }
}

fn note_of(text: &str) {
    let Some(process) = note::from_text(text) else { return };
    let group = note::group_from_text(text);
    let again = note::to_text(&process, group.as_deref());
    assert_eq!((note::from_text(&again), note::group_from_text(&again)), (Some(process), group));
}

/// A list of this body, with its header and its checksum, because random bytes never have the right one.
pub fn sealed(body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u64).to_le_bytes();
    [&b"ATOMGUAR"[..], &1_u32.to_le_bytes(), &length, &crc32(body).to_le_bytes(), body].concat()
}

/// The checksum of what is stored, reckoned apart from the code that checks it.
pub fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 },
        )
    })
}
