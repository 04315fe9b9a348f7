//! What a child says of its parent, changed: another parent, or the same one with other data.
//!
//! Knows how a locator is replaced, in one step of the log (`edit`). Does not know whether the new parent has the right
//! content: who asks for this has compared.
//!
//! A child knows its parent by the identifier of the parent's data. Before a merge writes into the parent, the child is
//! told both identifiers, the one the parent has and the one it is about to get ([`Link::Both`]); afterwards the new one.

use super::allocate::WriteIds;
use super::edit::{ChangedPages, Edit};
use super::image::VhdxImage;
use super::metadata::{self, Item, Places};
use super::open::{File, OpenError, open_with, read_metadata_table};
use super::parent_locator::{self, ParentPaths};
use crate::plan::{OpenMode, Stage};
use uuid::Uuid;

/// Why a file does not say what it should.
#[derive(Debug, thiserror::Error)]
pub enum RelinkError<E> {
    #[error(transparent)]
    Open(#[from] OpenError<E>),
    #[error("it is no differencing disk and has no parent")]
    NoChild,
    #[error(
        "what it says of its parent takes {0} bytes, for which its metadata has no room: move the images closer together, or convert it"
    )]
    Room(usize),
}

/// What is to be said of the parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link<'a> {
    /// Another parent: its data's identifier, and where it is.
    Parent(Uuid, &'a ParentPaths),
    /// The same parent, whose data has this identifier now.
    Same(Uuid),
    /// The same parent, whose data has the first identifier or the second.
    Both(Uuid, Uuid),
}

/// The stages that make the differencing disk of `len` bytes say so. `read` is as for [`open_with`]. The disk reads as
/// before, and children of it know it still.
///
/// # Errors
/// When the image cannot be opened for writing, or has no parent.
pub fn relink<E>(
    len: u64,
    link: &Link<'_>,
    ids: WriteIds,
    mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
) -> Result<Vec<Stage>, RelinkError<E>> {
    let image = open_with(len, OpenMode::Writable, &mut read)?;
    if image.parent.is_none() {
        return Err(RelinkError::NoChild);
    }
    let region = image.regions.metadata;
    let mut table = read_metadata_table(&mut File::with_empty_log(len, &mut read), region)?;
    let entries = table.get_mut(metadata::ENTRY_BYTES..).unwrap_or_default();
    let places = Places::parse(entries, region.start, region.len()).map_err(OpenError::Vhdx)?;
    let place = places.get(Item::ParentLocator, region.start).map_err(OpenError::Vhdx)?;
    let at = region.start + u64::from(place.offset);
    // At most `VHDX_LOCATOR_BYTES_MAX`, as the place was checked.
    let mut old = vec![0; place.len as usize];
    read(at, &mut old).map_err(|source| OpenError::Read { offset: at, len: old.len(), source })?;
    let new = match link {
        Link::Parent(linkage, paths) => parent_locator::encode(*linkage, paths),
        Link::Same(linkage) => parent_locator::with_linkage(&old, *linkage, None),
        Link::Both(now, soon) => parent_locator::with_linkage(&old, *now, Some(*soon)),
    };
    let new = new.map_err(RelinkError::Room)?;
    let place = metadata::replace(entries, Item::ParentLocator, new.len(), region.len())
        .ok_or(RelinkError::Room(new.len()))?;
    let mut changed = ChangedPages::default();
    changed.put(region.start, &table, &mut read)?;
    changed.put(region.start + u64::from(place.offset), &new, &mut read)?;
    Ok(one_step(&image, &changed, ids, len))
}

fn one_step(image: &VhdxImage, changed: &ChangedPages, ids: WriteIds, len: u64) -> Vec<Stage> {
    // What a guest reads stays, and so does what children know the image by.
    let ids = WriteIds { data_write: image.header.data_write_guid, ..ids };
    let mut edit = Edit::new(image, ids);
    edit.step(changed, len);
    edit.stages
}
