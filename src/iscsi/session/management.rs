//! Task management (RFC 7143, 11.5, 11.6): which functions the shard executes and which are answered here.
//!
//! Knows tags and command numbers. Does not know logical units: whether a LUN exists is the shard's answer.
//!
//! | function                                | answer                                                          |
//! |-----------------------------------------|-----------------------------------------------------------------|
//! | ABORT TASK of a task in the table       | the shard's                                                     |
//! | ABORT TASK of a command not yet begun   | function complete; its CmdSN counts as received                 |
//! | ABORT TASK of a management function     | function rejected (11.5.1)                                      |
//! | ABORT TASK of anything else             | task does not exist                                             |
//! | ABORT / CLEAR TASK SET, resets          | the shard's                                                     |
//! | TASK REASSIGN                           | reassignment not supported (it needs error recovery level 2)    |
//! | CLEAR ACA, unknown                      | function not supported (no unit here ever enters ACA)           |
//!
//! A function that ends more than one task (4.2.3.3) waits for the commands before it that other connections still
//! have to bring; a target reset does not, and their numbers count as received. Its response waits until no Data-Out
//! that was asked for is on its way to an aborted task, or the initiator has stopped sending it
//! (`connection::ABORTED_DATA_WAIT`), and then passes the fence (`fence`).

use super::output::Answer;
use super::{ConnectionId, ManagementFunction, ManagementResponse, Session, SessionEvent, TaskId};
use crate::clock::{Duration, Instant};
use crate::iscsi::command_window::Place;
use crate::iscsi::pdu::bhs::Bhs;
use crate::iscsi::pdu::task_mgmt::{Function, TaskManagementRequest};
use crate::iscsi::pdu::{InitiatorTaskTag, LunField};
use crate::iscsi::serial::CmdSn;
use crate::iscsi::task::Phase;

/// How long a function waits for commands before it; then the initiator has counted wrong, or given up on them.
const COMMANDS_WAIT: Duration = Duration::from_secs(5);

/// A management request on its way to its answer.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) task_tag: InitiatorTaskTag,
    pub(super) connection: ConnectionId,
    pub(super) place: Place,
    pub(super) function: ManagementFunction,
    lun: LunField,
    cmd_sn: CmdSn,
    progress: Progress,
}

#[derive(Clone, Copy, Debug)]
enum Progress {
    /// Commands before it are still to come.
    Early {
        since: Instant,
    },
    WithShard,
    /// Only data of aborted tasks or the fence keep its answer.
    Done(ManagementResponse),
}

impl Session {
    pub(super) fn take_management(&mut self, on: ConnectionId, bhs: &Bhs, place: Place, now: Instant) {
        let request = TaskManagementRequest::decode(bhs);
        let function = match request.function {
            Function::AbortTask => match self.referenced(&request) {
                Ok(function) => function,
                Err(response) => return self.answer_management(on, request.task_tag, response, place),
            },
            Function::AbortTaskSet => ManagementFunction::AbortTaskSet,
            Function::ClearTaskSet => ManagementFunction::ClearTaskSet,
            Function::LunReset => ManagementFunction::LunReset,
            Function::TargetWarmReset => ManagementFunction::TargetWarmReset,
            Function::TargetColdReset => ManagementFunction::TargetColdReset,
            Function::TaskReassign => {
                let response = ManagementResponse::ReassignmentNotSupported;
                return self.answer_management(on, request.task_tag, response, place);
            }
            Function::ClearAca | Function::Unknown(_) => {
                let response = ManagementResponse::FunctionNotSupported;
                return self.answer_management(on, request.task_tag, response, place);
            }
        };
        if matches!(function, ManagementFunction::TargetWarmReset | ManagementFunction::TargetColdReset) {
            let plugged = self.window.plug_before(request.cmd_sn);
            self.held_bytes -= plugged.iter().map(super::Held::data_len).sum::<usize>();
        }
        self.management.push(Asked {
            task_tag: request.task_tag,
            connection: on,
            place,
            function,
            lun: request.lun,
            cmd_sn: request.cmd_sn,
            progress: Progress::Early { since: now },
        });
        self.begin_due_management(None);
    }

    /// Gives functions to the shard whose earlier commands have all come; at `now` also those that have waited long
    /// enough.
    pub(super) fn begin_due_management(&mut self, now: Option<Instant>) {
        for asked in &mut self.management {
            let Progress::Early { since } = asked.progress else { continue };
            let alone = matches!(
                asked.function,
                ManagementFunction::AbortTask(_)
                    | ManagementFunction::TargetWarmReset
                    | ManagementFunction::TargetColdReset
            );
            let late = now.is_some_and(|now| now.since(since) >= COMMANDS_WAIT);
            if alone || late || self.window.has_all_before(asked.cmd_sn) {
                asked.progress = Progress::WithShard;
                self.events.push_back(SessionEvent::Management {
                    function: asked.function,
                    task_tag: asked.task_tag,
                    lun: asked.lun,
                    cmd_sn: asked.cmd_sn,
                });
            }
        }
    }

    /// The task an ABORT TASK means, or the answer when there is none (11.6.1).
    fn referenced(
        &mut self,
        request: &TaskManagementRequest,
    ) -> Result<ManagementFunction, ManagementResponse> {
        if let Some(id) = self.tasks.find(request.referenced_tag)
            && let Some(task) = self.tasks.get(id)
            && task.lun == request.lun
        {
            if task.is_known {
                return Ok(ManagementFunction::AbortTask(id));
            }
            // Refused by the session, which alone knows of it.
            self.abort_task(id);
            return Err(ManagementResponse::FunctionComplete);
        }
        if self.management.iter().any(|asked| asked.task_tag == request.referenced_tag) {
            return Err(ManagementResponse::FunctionRejected);
        }
        let is_ahead = request.ref_cmd_sn.before(request.cmd_sn) && self.window.contains(request.ref_cmd_sn);
        if !is_ahead {
            return Err(ManagementResponse::TaskDoesNotExist);
        }
        if let Some(held) = self.window.plug(request.ref_cmd_sn) {
            self.held_bytes -= held.data_len();
        }
        Err(ManagementResponse::FunctionComplete)
    }

    fn answer_management(
        &mut self,
        on: ConnectionId,
        task_tag: InitiatorTaskTag,
        response: ManagementResponse,
        place: Place,
    ) {
        self.answer(on, Answer::Management { task_tag, response, closes_this: false }, Some(place));
    }

    /// The shard's answer to [`SessionEvent::Management`]. Responses of tasks that completed before are sent
    /// before it.
    pub fn complete_management(&mut self, task_tag: InitiatorTaskTag, response: ManagementResponse) {
        let asked = self.management.iter_mut().find(|asked| asked.task_tag == task_tag);
        if let Some(asked) = asked {
            asked.progress = Progress::Done(response);
            self.aborted_task_gone();
        }
    }

    /// Answers what waited for data of aborted tasks, once none is on its way any more.
    pub(super) fn aborted_task_gone(&mut self) {
        if self.tasks.iter().any(|(_, task)| task.phase == Phase::Aborting) {
            return;
        }
        while self.fence.is_none()
            && let Some(at) =
                self.management.iter().position(|asked| matches!(asked.progress, Progress::Done(_)))
        {
            let asked = self.management.remove(at);
            let Progress::Done(response) = asked.progress else { return };
            self.pass_fence(asked, response);
        }
    }

    /// An aborted task is really gone.
    pub(super) fn remove_aborted(&mut self, id: TaskId) {
        if let Some(task) = self.tasks.remove(id) {
            self.window.finish(task.place);
        }
        self.aborted_task_gone();
    }

    /// Nobody waits for these answers any more; what was asked is done all the same.
    pub(super) fn forget_management(&mut self, gone: ConnectionId) {
        let (theirs, others): (Vec<_>, _) =
            core::mem::take(&mut self.management).into_iter().partition(|asked| asked.connection == gone);
        self.management = others;
        for asked in theirs {
            self.window.finish(asked.place);
        }
    }
}
