//! Task management (RFC 7143, 11.5, 11.6): which functions the shard executes and which are answered here.
//!
//! Knows tags and command numbers. Does not know logical units: whether a LUN exists is the shard's answer.
//!
//! | function                                | answer                                                          |
//! |-----------------------------------------|-----------------------------------------------------------------|
//! | ABORT TASK of a task in the table       | the shard's                                                     |
//! | ABORT TASK of a command not yet begun   | function complete; its CmdSN counts as received                 |
//! | ABORT TASK of anything else             | task does not exist                                             |
//! | ABORT / CLEAR TASK SET, resets          | the shard's                                                     |
//! | TASK REASSIGN                           | reassignment not supported (it needs error recovery level 2)    |
//! | CLEAR ACA, unknown                      | function not supported (no unit here ever enters ACA)           |
//!
//! A response waits until no Data-Out that was asked for is on its way to an aborted task (4.2.3.3), or the initiator
//! has stopped sending it (`connection::ABORTED_DATA_WAIT`).

use super::output::Answer;
use super::{ConnectionId, ManagementFunction, ManagementResponse, Session, SessionEvent, TaskId};
use crate::iscsi::command_window::Place;
use crate::iscsi::pdu::InitiatorTaskTag;
use crate::iscsi::pdu::bhs::Bhs;
use crate::iscsi::pdu::task_mgmt::{Function, TaskManagementRequest};
use crate::iscsi::task::Phase;

/// A management request on its way to its answer.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) task_tag: InitiatorTaskTag,
    connection: ConnectionId,
    place: Place,
    /// The shard has done its part.
    response: Option<ManagementResponse>,
}

impl Session {
    pub(super) fn take_management(&mut self, on: ConnectionId, bhs: &Bhs, place: Place) {
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
        let task_tag = request.task_tag;
        self.management.push(Asked { task_tag, connection: on, place, response: None });
        self.events.push_back(SessionEvent::Management {
            function,
            task_tag,
            lun: request.lun,
            cmd_sn: request.cmd_sn,
        });
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
        self.answer(on, Answer::Management { task_tag, response }, Some(place));
    }

    /// The shard's answer to [`SessionEvent::Management`]. Responses of tasks that completed before are sent
    /// before it.
    pub fn complete_management(&mut self, task_tag: InitiatorTaskTag, response: ManagementResponse) {
        if let Some(asked) = self.management.iter_mut().find(|asked| asked.task_tag == task_tag) {
            asked.response = Some(response);
            self.aborted_task_gone();
        }
    }

    /// Answers what waited for data of aborted tasks, once none is on its way any more.
    pub(super) fn aborted_task_gone(&mut self) {
        if self.management.is_empty() || self.tasks.iter().any(|(_, task)| task.phase == Phase::Aborting) {
            return;
        }
        let (done, waiting) = core::mem::take(&mut self.management).into_iter().partition(Asked::is_done);
        self.management = waiting;
        for Asked { task_tag, connection, place, response } in done {
            let response = response.unwrap_or(ManagementResponse::FunctionComplete);
            self.answer_management(connection, task_tag, response, place);
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

impl Asked {
    fn is_done(&self) -> bool {
        self.response.is_some()
    }
}
