//! Enums whose variants have names: the list of all and the name of each come from the declaration, so none can be forgotten.

/// Declares an enum with `ALL`, `as_str` and `parse`. A variant's name is its identifier, or what stands after `=`.
#[macro_export]
macro_rules! named {
    (
        $(#[$meta:meta])*
        $vis:vis enum $type:ident { $($(#[$doc:meta])* $variant:ident $(= $name:literal)?,)* }
    ) => {
        $(#[$meta])*
        $vis enum $type { $($(#[$doc])* $variant,)* }

        impl $type {
            /// All of them, in the order of the declaration.
            pub const ALL: [Self; [$(stringify!($variant)),*].len()] = [$(Self::$variant),*];

            /// The name, for people and programs.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $crate::named!(@name $variant $($name)?),)* }
            }

            /// The one of this name, if this version knows it.
            #[must_use]
            pub fn parse(name: &str) -> Option<Self> {
                Self::ALL.into_iter().find(|one| one.as_str() == name)
            }
        }
    };
    (@name $variant:ident) => { stringify!($variant) };
    (@name $variant:ident $name:literal) => { $name };
}
