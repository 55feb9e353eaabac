//! Logs, and traces when an OTLP endpoint is configured.

use std::io::IsTerminal;

use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::cli::LogArgs;

/// Ends exporting.
pub struct Telemetry(Option<SdkTracerProvider>);

/// Starts logging to `writer`, in colours where standard error is a terminal, and exporting spans when `OTEL_EXPORTER_OTLP_ENDPOINT` is set.
///
/// # Errors
/// When the filter or the endpoint cannot be used.
pub fn start<W>(log: &LogArgs, role: &'static str, writer: W) -> anyhow::Result<Telemetry>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = EnvFilter::try_new(&log.log)?;
    // Nobody may read standard error any more: that is no reason to end, as telling of it there would be.
    let colours =
        std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let text =
        tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(colours).log_internal_errors(false);
    let text = if log.log_json { text.json().boxed() } else { text.compact().boxed() };
    let provider = match std::env::var_os("OTEL_EXPORTER_OTLP_ENDPOINT") {
        None => None,
        Some(_) => {
            let exporter = opentelemetry_otlp::SpanExporter::builder().with_tonic().build()?;
            let name =
                opentelemetry_sdk::Resource::builder().with_service_name(format!("dunlin-{role}")).build();
            Some(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(name).build())
        }
    };
    let traces = provider.as_ref().map(|p| tracing_opentelemetry::layer().with_tracer(p.tracer("dunlin")));
    tracing_subscriber::registry().with(traces).with(text).with(filter).try_init()?;
    Ok(Telemetry(provider))
}

impl Telemetry {
    /// Sends what is left.
    pub fn stop(self) {
        if let Some(provider) = self.0
            && let Err(error) = provider.shutdown()
        {
            tracing::warn!(%error, "some spans were not exported");
        }
    }
}
