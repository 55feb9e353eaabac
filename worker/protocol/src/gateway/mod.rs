//! The side of a session that owns it: it keeps the tokens, chooses the route and counts the attempts.

mod admission;
mod core;
mod own_model;
mod pace;
mod recovery;
mod resume;
mod routes;
mod session;
mod share;
mod shell;

pub use core::GatewayCore;
pub use own_model::OtherModel;
pub use recovery::{Disturbance, Recovery};
pub use routes::NoWay;
pub use session::SessionView;
pub use shell::{Failure, GatewayConfig, GatewayEffect, NotReady, Rejected, Submission};
