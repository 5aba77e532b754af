//! Config files: refused, or read into values that are in range.

use zbatch::{cli::ModelArgs, error::Kind, provider::Dialect, settings::Config};

/// # Panics
/// When a law is broken.
pub fn check(data: &[u8]) {
    let path = super::scratch("config.json");
    super::write(&path, data);
    let refused = |error: &zbatch::error::Error| {
        assert!(matches!(error.kind(), Kind::Input | Kind::Usage), "{error}");
    };
    let config = match Config::load(Some(&path), &zbatch::console::Console::silent()) {
        Ok(config) => config,
        Err(error) => return refused(&error),
    };
    match config.models(&ModelArgs::default()) {
        Ok(models) => {
            let temperature = models.temperature.value.as_f64().expect("a number");
            assert!((0.0..=2.0).contains(&temperature));
            assert!(!models.model.value.trim().is_empty() && !models.multimodal_model.value.trim().is_empty());
            assert!(Dialect::find(&models.provider.value).is_ok());
        }
        Err(error) => refused(&error),
    }
    assert!(!config.poll_interval(None).value.is_zero());
    assert!(config.max_lines(None).value > 0 && config.max_bytes(None).value > 0);
}
