//! The syntax tree of a template. Its depth is bounded where it is built, so that neither evaluating
//! nor dropping it can overflow the stack. Used by `parser` and `interpreter`.

use std::sync::Arc;

use crate::text::Text;

/// A name by its place in the template's table.
pub(crate) type Symbol = u32;

pub(crate) type Block = Vec<Statement>;

#[derive(Debug)]
pub(crate) enum Statement {
    Data(Arc<Text>),
    Output(Node),
    If {
        branches: Vec<(Node, Block)>,
        otherwise: Block,
    },
    For(Arc<For>),
    Set(Target, Node),
    /// The rest of a set block's filters; their input is its text.
    SetBlock {
        target: Target,
        filters: Vec<Filter>,
        body: Block,
    },
    Macro(Arc<Macro>),
    /// A macro that is called with this body as `caller`.
    CallBlock {
        caller: Arc<Macro>,
        call: Node,
    },
    FilterBlock {
        filters: Vec<Filter>,
        body: Block,
    },
    With {
        targets: Vec<(Target, Node)>,
        body: Block,
    },
    Break,
    Continue,
}

#[derive(Debug)]
pub(crate) struct For {
    pub(crate) target: Target,
    pub(crate) items: Node,
    pub(crate) filter: Option<Node>,
    pub(crate) body: Block,
    pub(crate) otherwise: Block,
    pub(crate) is_recursive: bool,
    pub(crate) line: u32,
}

#[derive(Debug)]
pub(crate) struct Macro {
    pub(crate) name: Symbol,
    pub(crate) parameters: Vec<(Symbol, Option<Node>)>,
    pub(crate) body: Block,
}

/// What is assigned to.
#[derive(Debug)]
pub(crate) enum Target {
    Name(Symbol),
    Tuple(Vec<Target>),
    /// Of a namespace.
    Attribute(Symbol, Arc<str>),
}

#[derive(Debug)]
pub(crate) struct Filter {
    pub(crate) name: Arc<str>,
    pub(crate) arguments: Arguments,
    pub(crate) line: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Arguments {
    pub(crate) positional: Vec<Node>,
    pub(crate) named: Vec<(Arc<Text>, Node)>,
    /// `*values` and `**values`.
    pub(crate) rest: Option<Node>,
    pub(crate) named_rest: Option<Node>,
}

/// An expression with its line and the depth of the tree below it.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) expression: Expression,
    pub(crate) line: u32,
    pub(crate) depth: u32,
}

#[derive(Debug)]
pub(crate) enum Expression {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Arc<Text>),
    Name(Symbol),
    List(Vec<Node>),
    Tuple(Vec<Node>),
    Map(Vec<(Node, Node)>),
    Attribute(Box<Node>, Arc<str>),
    Item(Box<Node>, Box<Node>),
    Slice(Box<Node>, Box<[Option<Node>; 3]>),
    Call(Box<Node>, Box<Arguments>),
    Filter(Box<Node>, Box<Filter>),
    Test {
        value: Box<Node>,
        test: Box<Filter>,
        is_negated: bool,
    },
    Not(Box<Node>),
    Negative(Box<Node>),
    Positive(Box<Node>),
    Binary(Operator, Box<Node>, Box<Node>),
    /// `a < b < c`.
    Compare(Box<Node>, Vec<(Comparison, Node)>),
    Concat(Vec<Node>),
    And(Box<Node>, Box<Node>),
    Or(Box<Node>, Box<Node>),
    /// test, then, else.
    Conditional(Box<Node>, Box<Node>, Option<Box<Node>>),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    IntegerDivide,
    Modulo,
    Power,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
    NotIn,
}
