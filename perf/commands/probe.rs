//! `perf probe`: asks a portal and a disk what they are, as a second opinion.
//!
//! Knows which questions to ask and how to show the answers. Does not know their bytes.

use clap::Args;

use super::table::table;
use crate::fail::{Result, failure};
use crate::initiator::{self, Endpoint, Options};
use crate::pattern;
use crate::scsi::SECTOR;
use crate::url::Url;

#[derive(Debug, Args)]
pub(crate) struct ProbeArgs {
    /// Disk to ask, iscsi://[USER%SECRET@]HOST:PORT/TARGET/LUN
    url: Url,
    /// Also write, flush and read back the last MiB of the disk, which is then restored
    #[arg(long)]
    write: bool,
    /// Ask for header and data digests
    #[arg(long)]
    digests: bool,
}

/// Sizes of the test writes: within a command, with unsolicited data, and with R2Ts.
const WRITES: [u32; 5] = [1, 16, 129, 400, 2048];

pub(crate) fn run(args: &ProbeArgs) -> Result<()> {
    let url = &args.url;
    let options = Options {
        chap: url.chap.clone(),
        header_digest: args.digests,
        data_digest: args.digests,
        ..Options::default()
    };
    let targets = initiator::discover(url.address()?, &options)?;
    let endpoint = Endpoint { address: url.address()?, target: url.target.clone(), lun: url.lun };
    let mut session = initiator::open(&endpoint, &options)?;
    let agreed = session.agreed();
    session.ready()?;
    let inquiry = session.inquiry()?;
    let pages = session.inquiry_page(0)?;
    let luns = session.luns()?;
    let capacity = session.capacity()?;
    let long = session.capacity_16()?;
    let mut table = table(&["what", "answer"]);
    let mut row = |what: &str, answer: String| {
        table.add_row([what.to_string(), answer]);
    };
    row("targets of the portal", targets.join("\n"));
    row(
        "vendor, product, revision",
        format!("{}, {}, {}", inquiry.vendor, inquiry.product, inquiry.revision),
    );
    row("device type", inquiry.device_type.to_string());
    row("VPD pages", pages.get(4..).unwrap_or_default().iter().map(|page| format!("{page:02x} ")).collect());
    row("LUNs", format!("{luns:?}"));
    row("sectors", format!("{} of {} bytes", capacity.sectors, capacity.sector_len));
    row("largest PDU to the target", agreed.max_send_segment.to_string());
    row("MaxBurstLength, FirstBurstLength", format!("{}, {}", agreed.max_burst, agreed.first_burst));
    row("ImmediateData, InitialR2T", format!("{}, {}", agreed.immediate_data, agreed.initial_r2t));
    row("header digest, data digest", format!("{}, {}", agreed.header_digest, agreed.data_digest));
    if capacity != long {
        return Err(failure!(
            "{url} gives {capacity:?} by READ CAPACITY(10) but {long:?} by (16): look at the target"
        ));
    }
    if args.write {
        let result = write_and_restore(&mut session, capacity.sectors);
        row("writes read back", result?);
    }
    session.logout()?;
    println!("{table}");
    Ok(())
}

fn write_and_restore(session: &mut initiator::Session, sectors: u64) -> Result<String> {
    let most = u64::from(WRITES.into_iter().max().unwrap_or_default());
    let lba = sectors
        .checked_sub(most)
        .ok_or_else(|| failure!("the disk has less than {most} sectors: use a larger one"))?;
    let before = session.read(lba, most as u32)?;
    let mut outcome = Ok(());
    for (seed, count) in WRITES.into_iter().enumerate() {
        let mut data = vec![0; (u64::from(count) * SECTOR) as usize];
        pattern::stamp_bytes(seed as u64 + 1, lba * SECTOR, &mut data);
        session.write(lba, data.clone())?;
        session.flush()?;
        if session.read(lba, count)? != data {
            outcome = Err(failure!("{count} sectors written at {lba} do not read back: look at the target"));
            break;
        }
    }
    session.write(lba, before.clone())?;
    session.flush()?;
    if outcome.is_ok() && session.read(lba, most as u32)? != before {
        outcome = Err(failure!("the sectors from {lba} could not be restored: look at the target"));
    }
    outcome.map(|()| format!("{} sizes, up to {} sectors", WRITES.len(), most))
}
