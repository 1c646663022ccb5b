use opengrid_models::Catalogue;

/// A catalogue that is read is written and read back as the same; one that is refused says so in one line.
pub fn catalogue(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Catalogue::from_toml(text, "fuzz") {
        Ok(catalogue) => {
            let written: String = catalogue.models().map(|model| model.to_toml() + "\n").collect();
            assert_eq!(Catalogue::from_toml(&written, "written").ok().as_ref(), Some(&catalogue), "{written}");
        }
        Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
    }
}
