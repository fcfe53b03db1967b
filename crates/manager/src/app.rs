//! What each request does: checks who asks, decides, and writes the intended state in one
//! transaction. Handlers unpack, call one function from here, and pack the answer.
//!
//! Functions are named after their endpoint and their verb on the command line (`vm_start`). Reads
//! work on the published snapshot and are plain functions; changes are `async` and return once they
//! are durable. **A caller of another project gets `NotFound`, word for word as if the project did
//! not exist.**

use plimsoll_api::v1::WhoAmI;
use plimsoll_model::{Name, Project, ProjectId, Role, TokenId};

use crate::core::State;

pub mod agent;
mod balance;
pub(crate) mod change;
pub mod drain;
pub mod error;
pub mod event;
pub mod explain;
pub mod host;
pub mod image;
pub mod migration;
pub mod network;
pub mod project;
pub mod reservation;
pub mod settings;
pub mod status;
pub mod token;
pub mod vm;

pub use agent::{agent_desired, agent_report};
pub use balance::{balance_apply, balance_plan, balance_show};
pub use drain::host_drain;
pub use error::{AppError, Invalid, Noun};
pub use event::event_list;
pub use explain::{request_explain, vm_explain};
pub use host::{host_fence, host_join, host_list, host_remove, host_show, host_undrain};
pub use image::{
    DiskFacts, image_create, image_delete, image_file_done, image_file_expected,
    image_file_for_host, image_files, image_list, image_show,
};
pub use migration::{vm_migrate, vm_migrate_cancel};
pub use network::{network_create, network_delete, network_list, network_show};
pub use project::{project_create, project_delete, project_list, project_set, project_show};
pub use reservation::reservation_list;
pub use settings::{settings_set, settings_show};
pub use status::{cluster_numbers, cluster_status, whoami};
pub use token::{
    join_token_create, token_authenticate, token_create, token_ensure_admin, token_list,
    token_revoke,
};
pub use vm::{
    Access, VmLocation, vm_access, vm_create, vm_deflate, vm_delete, vm_inflate, vm_list,
    vm_locate, vm_reboot, vm_set, vm_show, vm_start, vm_stop,
};

/// Who asks: what is known of a good token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The token.
    pub token: TokenId,
    /// What its holder may do.
    pub role: Role,
    /// In which project; `None`: in the whole cluster.
    pub project: Option<ProjectId>,
}

impl Caller {
    /// The project of this name, if the caller may know of it.
    ///
    /// # Errors
    /// There is none, or none for this caller: the same error.
    pub(crate) fn project<'a>(
        &self,
        state: &'a State,
        name: &Name,
    ) -> Result<&'a Project, AppError> {
        state
            .project_by_name(name)
            .filter(|project| self.project.is_none_or(|own| own == project.id))
            .ok_or_else(|| AppError::not_found(Noun::Project, name))
    }

    /// Checks that the role is at least this.
    ///
    /// # Errors
    /// It is lower.
    pub(crate) fn at_least(&self, needed: Role) -> Result<(), AppError> {
        if self.role >= needed {
            Ok(())
        } else {
            Err(AppError::Forbidden { needed, has: self.role, cluster: false })
        }
    }

    /// Checks that the role is at least this in the whole cluster.
    ///
    /// # Errors
    /// It is lower, or bound to a project.
    pub(crate) fn in_cluster(&self, needed: Role) -> Result<(), AppError> {
        if self.project.is_none() && self.role >= needed {
            Ok(())
        } else {
            Err(AppError::Forbidden { needed, has: self.role, cluster: self.project.is_some() })
        }
    }

    /// The wire form.
    pub(crate) fn who(&self, state: &State) -> WhoAmI {
        WhoAmI {
            token: self.token,
            role: self.role,
            project: self
                .project
                .and_then(|id| state.project(id))
                .map(|project| project.name.clone()),
        }
    }
}
