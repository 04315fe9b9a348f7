//! Signals as values: blocked in every thread, taken one by one by the thread that asks.
//!
//! Knows SIGINT, SIGTERM and SIGHUP. Does not know what they should lead to.

use core::mem::MaybeUninit;
use core::time::Duration;
use std::io;

/// A signal the server acts upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGINT or SIGTERM: end in good order.
    Terminate,
    /// SIGHUP: read the configuration again.
    Reload,
}

/// The signals of this process are blocked and wait to be taken.
#[derive(Debug)]
pub struct Signals {
    set: libc::sigset_t,
}

const TAKEN: [(libc::c_int, Signal); 3] =
    [(libc::SIGINT, Signal::Terminate), (libc::SIGTERM, Signal::Terminate), (libc::SIGHUP, Signal::Reload)];

impl Signals {
    /// Blocks the signals in this thread and in all threads it starts from now on: call it before any other.
    pub fn block() -> io::Result<Self> {
        let set = signal_set()?;
        // SAFETY: `set` is an initialised set; no old mask is asked for.
        let failed = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, core::ptr::null_mut()) };
        if failed != 0 {
            return Err(io::Error::from_raw_os_error(failed));
        }
        Ok(Self { set })
    }

    /// Waits for the next signal.
    pub fn wait(&self) -> io::Result<Signal> {
        loop {
            if let Some(signal) = self.wait_for(Duration::from_secs(3600))? {
                return Ok(signal);
            }
        }
    }

    /// Waits at most `timeout`; `None` when none came.
    pub fn wait_for(&self, timeout: Duration) -> io::Result<Option<Signal>> {
        let timeout = libc::timespec {
            tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        // SAFETY: `set` and `timeout` are initialised and outlive the call; no details are asked for.
        let number = unsafe { libc::sigtimedwait(&self.set, core::ptr::null_mut(), &timeout) };
        if number < 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EINTR) => Ok(None),
                _ => Err(error),
            };
        }
        Ok(TAKEN.iter().find(|(taken, _)| *taken == number).map(|(_, signal)| *signal))
    }
}

fn signal_set() -> io::Result<libc::sigset_t> {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set it is given.
    let failed = unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    if failed != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: sigemptyset succeeded.
    let mut set: libc::sigset_t = unsafe { set.assume_init() };
    for (number, _) in TAKEN {
        // SAFETY: the set is initialised; an unknown number would be an error, not a fault.
        let failed = unsafe { libc::sigaddset(&mut set, number) };
        if failed != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocked_signal_waits_to_be_taken() {
        std::thread::spawn(|| {
            let signals = Signals::block().unwrap();
            assert_eq!(signals.wait_for(Duration::from_millis(1)).unwrap(), None);
            for (number, signal) in TAKEN {
                // SAFETY: no precondition.
                let this_thread = unsafe { libc::pthread_self() };
                // SAFETY: the thread lives, and the signal is blocked in it: it waits instead of ending the process.
                let failed = unsafe { libc::pthread_kill(this_thread, number) };
                assert_eq!(failed, 0);
                assert_eq!(signals.wait().unwrap(), signal);
            }
        })
        .join()
        .unwrap();
    }
}
