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
//! Data-Out PDUs that an initiator still sends for an aborted task find no task and are thrown away, so a
//! response need not wait for them.

use super::output::Answer;
use super::{ManagementFunction, ManagementResponse, Session, SessionEvent};
use crate::iscsi::command_window::Place;
use crate::iscsi::pdu::InitiatorTaskTag;
use crate::iscsi::pdu::bhs::Bhs;
use crate::iscsi::pdu::task_mgmt::{Function, TaskManagementRequest};

impl Session {
    pub(super) fn take_management(&mut self, bhs: &Bhs, place: Place) {
        let request = TaskManagementRequest::decode(bhs);
        let function = match request.function {
            Function::AbortTask => match self.referenced(&request) {
                Ok(function) => function,
                Err(response) => return self.answer_management(request.task_tag, response, place),
            },
            Function::AbortTaskSet => ManagementFunction::AbortTaskSet,
            Function::ClearTaskSet => ManagementFunction::ClearTaskSet,
            Function::LunReset => ManagementFunction::LunReset,
            Function::TargetWarmReset => ManagementFunction::TargetWarmReset,
            Function::TargetColdReset => ManagementFunction::TargetColdReset,
            Function::TaskReassign => {
                let response = ManagementResponse::ReassignmentNotSupported;
                return self.answer_management(request.task_tag, response, place);
            }
            Function::ClearAca | Function::Unknown(_) => {
                let response = ManagementResponse::FunctionNotSupported;
                return self.answer_management(request.task_tag, response, place);
            }
        };
        self.management.push((request.task_tag, place));
        self.events.push_back(SessionEvent::Management {
            function,
            task_tag: request.task_tag,
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

    fn answer_management(&mut self, task_tag: InitiatorTaskTag, response: ManagementResponse, place: Place) {
        self.answer(Answer::Management { task_tag, response }, Some(place));
    }

    /// The shard's answer to [`SessionEvent::Management`]. Responses of tasks that completed before are sent
    /// before it.
    pub fn complete_management(&mut self, task_tag: InitiatorTaskTag, response: ManagementResponse) {
        if let Some(at) = self.management.iter().position(|(tag, _)| *tag == task_tag) {
            let (_, place) = self.management.swap_remove(at);
            self.answer_management(task_tag, response, place);
        }
    }
}
