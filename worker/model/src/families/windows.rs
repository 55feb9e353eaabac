//! Which layers slide over which window, as several families say it.

use serde_json::Value;

use crate::config::ModelConfig;
use crate::config::gguf_values::Keys;
use crate::config::json_section::Section;
use crate::error::{ModelError, excerpt};

/// `sliding_window` of config.json; `default` where it is not there, and none where it is null.
pub(super) fn window(c: &Section<'_>, default: Option<u32>) -> Result<Option<u32>, ModelError> {
    match c.map.contains_key("sliding_window") {
        true => Ok(c.whole("sliding_window")?.map(positions)),
        false => Ok(default),
    }
}

/// That of a GGUF file, where 0 is none.
pub(super) fn gguf_window(keys: &Keys<'_>) -> Result<Option<u32>, ModelError> {
    Ok(keys.whole("attention.sliding_window")?.filter(|window| *window > 0).map(positions))
}

fn positions(window: usize) -> u32 {
    u32::try_from(window).unwrap_or(u32::MAX)
}

/// For each layer whether it slides, if `layer_types` says that.
pub(super) fn layer_types(c: &Section<'_>, layers: u32) -> Result<Option<Vec<bool>>, ModelError> {
    let Some(types) = c.get("layer_types") else { return Ok(None) };
    let types = types.as_array().filter(|types| types.len() == layers as usize);
    let types = types.ok_or_else(|| c.unusable("layer_types"))?;
    let slides = |kind: &Value| match kind.as_str() {
        Some("full_attention") => Ok(false),
        Some("sliding_attention") => Ok(true),
        _ => Err(c.refused(
            &format!("`layer_types` has {}", excerpt(&kind.to_string())),
            "layers of `full_attention` and `sliding_attention` run here",
        )),
    };
    types.iter().map(slides).collect::<Result<_, _>>().map(Some)
}

/// Gives all layers for which `which` holds a window. One as long as the context does nothing.
pub(super) fn slide(model: &mut ModelConfig, window: Option<u32>, which: impl Fn(u32) -> bool) {
    let Some(window) = window.filter(|window| *window < model.context_length) else { return };
    let mut sliding = model.block.clone();
    sliding.attention.window = Some(window);
    model.vary(&sliding, which);
}

/// Limits a model to its window, within which it changes nothing: for files that do not say which layers slide.
pub(super) fn stay_within(model: &mut ModelConfig, window: Option<u32>) {
    model.context_length = window.map_or(model.context_length, |window| model.context_length.min(window));
}

/// Refuses biases of attention, which would be those of the output matrix, too.
pub(super) fn no_bias(c: &Section<'_>) -> Result<(), ModelError> {
    match c.flag("attention_bias")? {
        None | Some(false) => Ok(()),
        Some(true) => Err(c.refused(
            "`attention_bias` is true",
            "models whose attention has a bias of the output matrix do not run here",
        )),
    }
}
