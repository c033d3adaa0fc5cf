//! From tokens to the syntax tree: the statements. Depth is bounded here. Used by `lib`.

mod expressions;

use std::collections::HashMap;
use std::sync::Arc;

use crate::ast::{Arguments, Block, Filter, For, Macro, Node, Statement, Symbol, Target};
use crate::error::TemplateError;
use crate::lexer::{Token, tokenize};
use crate::text::Text;

/// How deep statements and expressions may nest. Real templates reach about 20.
const DEPTH: u32 = 150;

/// A parsed template.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) body: Block,
    /// The text of each [`Symbol`].
    pub(crate) names: Vec<Arc<str>>,
}

struct Parser {
    tokens: Vec<(Token, u32)>,
    at: usize,
    depth: u32,
    names: Vec<Arc<str>>,
    symbols: HashMap<Arc<str>, Symbol>,
    n_loops: u32,
}

/// Names that the interpreter itself sets, in the order of their symbols.
pub(crate) const OWN_NAMES: [&str; 4] = ["loop", "caller", "varargs", "kwargs"];

pub(crate) fn parse(source: &str) -> Result<Parsed, TemplateError> {
    let tokens = tokenize(source)?;
    let (names, symbols) = (Vec::new(), HashMap::new());
    let mut parser = Parser { tokens, at: 0, depth: 0, names, symbols, n_loops: 0 };
    for name in OWN_NAMES {
        parser.symbol(name);
    }
    let body = parser.block(&[])?;
    Ok(Parsed { body, names: parser.names })
}

impl Parser {
    fn peek(&self) -> &Token {
        self.ahead(0)
    }

    fn ahead(&self, n: usize) -> &Token {
        self.tokens.get(self.at.saturating_add(n)).map_or(&Token::End, |(token, _)| token)
    }

    fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |(_, line)| *line)
    }

    fn next(&mut self) -> Token {
        let token = self.tokens.get_mut(self.at).map(|(token, _)| token);
        let token = token.map_or(Token::End, |token| std::mem::replace(token, Token::End));
        self.at += 1;
        token
    }

    fn error<T>(&self, message: impl Into<String>) -> Result<T, TemplateError> {
        Err(TemplateError::syntax(message, self.line()))
    }

    fn unexpected<T>(&self, wanted: &str) -> Result<T, TemplateError> {
        let found = match self.peek() {
            Token::End => "the end of the template".to_owned(),
            Token::BlockEnd | Token::OutputEnd => "the end of the tag".to_owned(),
            Token::Name(name) => format!("`{name}`"),
            Token::Mark(mark) => format!("`{mark}`"),
            Token::Text(_) => "a string".to_owned(),
            Token::Int(_) | Token::Float(_) => "a number".to_owned(),
            Token::Data(_) | Token::BlockBegin | Token::OutputBegin => "text".to_owned(),
        };
        self.error(format!("{wanted} is missing before {found}"))
    }

    fn is_mark(&self, mark: &str) -> bool {
        matches!(self.peek(), Token::Mark(found) if *found == mark)
    }

    fn is_name(&self, name: &str) -> bool {
        matches!(self.peek(), Token::Name(found) if found == name)
    }

    fn take_mark(&mut self, mark: &str) -> bool {
        let found = self.is_mark(mark);
        self.at += usize::from(found);
        found
    }

    fn take_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        self.at += usize::from(found);
        found
    }

    fn expect_mark(&mut self, mark: &str) -> Result<(), TemplateError> {
        if self.take_mark(mark) { Ok(()) } else { self.unexpected(&format!("`{mark}`")) }
    }

    fn expect_name(&mut self) -> Result<String, TemplateError> {
        match self.peek() {
            Token::Name(_) => match self.next() {
                Token::Name(name) => Ok(name),
                _ => self.unexpected("a name"),
            },
            _ => self.unexpected("a name"),
        }
    }

    fn end_of_tag(&mut self) -> Result<(), TemplateError> {
        if *self.peek() != Token::BlockEnd {
            return self.unexpected("`%}`");
        }
        self.at += 1;
        Ok(())
    }

    fn symbol(&mut self, name: &str) -> Symbol {
        if let Some(&symbol) = self.symbols.get(name) {
            return symbol;
        }
        let symbol = Symbol::try_from(self.names.len()).unwrap_or(Symbol::MAX);
        let name: Arc<str> = name.into();
        self.names.push(Arc::clone(&name));
        self.symbols.insert(name, symbol);
        symbol
    }

    fn nested<T>(
        &mut self,
        parse: impl FnOnce(&mut Self) -> Result<T, TemplateError>,
    ) -> Result<T, TemplateError> {
        if DEPTH <= self.depth {
            return self.error("the template nests too deeply");
        }
        self.depth += 1;
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    /// Statements up to one of these tags, whose name is not taken yet; up to the end without any.
    fn block(&mut self, ends: &[&str]) -> Result<Block, TemplateError> {
        self.nested(|parser| parser.statements(ends))
    }

    fn statements(&mut self, ends: &[&str]) -> Result<Block, TemplateError> {
        let mut block = Vec::new();
        loop {
            match self.peek() {
                Token::End if ends.is_empty() => return Ok(block),
                Token::End => return self.unexpected(&format!("`{}`", ends.join("` or `"))),
                Token::Data(_) => {
                    if let Token::Data(text) = self.next() {
                        block.push(Statement::Data(Arc::new(Text::template(text))));
                    }
                }
                Token::OutputBegin => {
                    self.at += 1;
                    block.push(Statement::Output(self.tuple(true)?));
                    if *self.peek() != Token::OutputEnd {
                        return self.unexpected("`}}`");
                    }
                    self.at += 1;
                }
                Token::BlockBegin => {
                    self.at += 1;
                    if ends.iter().any(|end| self.is_name(end)) {
                        return Ok(block);
                    }
                    self.statement(&mut block)?;
                }
                _ => return self.unexpected("a tag"),
            }
        }
    }

    /// The body of a tag that has only this end, with the end.
    fn body(&mut self, end: &str) -> Result<Block, TemplateError> {
        self.end_of_tag()?;
        let body = self.block(&[end])?;
        self.at += 1;
        self.end_of_tag()?;
        Ok(body)
    }

    fn statement(&mut self, block: &mut Block) -> Result<(), TemplateError> {
        let line = self.line();
        let name = self.expect_name()?;
        let statement = match name.as_str() {
            "if" => self.if_statement()?,
            "for" => self.for_statement(line)?,
            "set" => self.set_statement()?,
            "macro" => {
                let name = self.expect_name()?;
                let name = self.symbol(&name);
                let parameters = self.parameters()?;
                let body = self.outside_loops(|parser| parser.body("endmacro"))?;
                Statement::Macro(Arc::new(Macro { name, parameters, body }))
            }
            "call" => {
                let parameters = if self.is_mark("(") { self.parameters()? } else { Vec::new() };
                let call = self.expression()?;
                let name = self.symbol("caller");
                let body = self.outside_loops(|parser| parser.body("endcall"))?;
                let caller = Arc::new(Macro { name, parameters, body });
                Statement::CallBlock { caller, call }
            }
            "filter" => {
                let filters = self.filters(true)?;
                let body = self.outside_loops(|parser| parser.body("endfilter"))?;
                Statement::FilterBlock { filters, body }
            }
            "with" => {
                let mut targets = Vec::new();
                while *self.peek() != Token::BlockEnd {
                    let target = self.target()?;
                    self.expect_mark("=")?;
                    targets.push((target, self.expression()?));
                    if !self.take_mark(",") {
                        break;
                    }
                }
                Statement::With { targets, body: self.body("endwith")? }
            }
            // Marks the assistant's words for training in Hugging Face's dialect; a scope of its own.
            "generation" => {
                let body = self.outside_loops(|parser| parser.body("endgeneration"))?;
                Statement::With { targets: Vec::new(), body }
            }
            "break" | "continue" if self.n_loops == 0 => {
                return self.error(format!("`{name}` stands outside a loop"));
            }
            "break" => {
                self.end_of_tag()?;
                Statement::Break
            }
            "continue" => {
                self.end_of_tag()?;
                Statement::Continue
            }
            "include" | "import" | "from" | "extends" | "block" => {
                return self
                    .error(format!("`{name}` needs other files, which a chat template lacks"));
            }
            _ => return self.error(format!("there is no tag `{name}`")),
        };
        block.push(statement);
        Ok(())
    }

    fn outside_loops<T>(
        &mut self,
        parse: impl FnOnce(&mut Self) -> Result<T, TemplateError>,
    ) -> Result<T, TemplateError> {
        let n_loops = std::mem::take(&mut self.n_loops);
        let parsed = parse(self);
        self.n_loops = n_loops;
        parsed
    }

    fn if_statement(&mut self) -> Result<Statement, TemplateError> {
        let mut branches = Vec::new();
        loop {
            let test = self.tuple(true)?;
            self.end_of_tag()?;
            branches.push((test, self.block(&["elif", "else", "endif"])?));
            if self.take_name("elif") {
                continue;
            }
            let has_else = self.take_name("else");
            let otherwise = if has_else {
                self.end_of_tag()?;
                self.block(&["endif"])?
            } else {
                Vec::new()
            };
            self.at += 1;
            self.end_of_tag()?;
            return Ok(Statement::If { branches, otherwise });
        }
    }

    fn for_statement(&mut self, line: u32) -> Result<Statement, TemplateError> {
        let target = self.target()?;
        if !self.take_name("in") {
            return self.unexpected("`in`");
        }
        let items = self.tuple(false)?;
        let filter = if self.take_name("if") { Some(self.expression()?) } else { None };
        let is_recursive = self.take_name("recursive");
        self.end_of_tag()?;
        self.n_loops += 1;
        let body = self.block(&["endfor", "else"]);
        self.n_loops -= 1;
        let body = body?;
        let otherwise = if self.take_name("else") {
            self.end_of_tag()?;
            self.block(&["endfor"])?
        } else {
            Vec::new()
        };
        self.at += 1;
        self.end_of_tag()?;
        let each = For { target, items, filter, body, otherwise, is_recursive, line };
        Ok(Statement::For(Arc::new(each)))
    }

    fn set_statement(&mut self) -> Result<Statement, TemplateError> {
        let target = self.target()?;
        if self.take_mark("=") {
            let value = self.tuple(true)?;
            self.end_of_tag()?;
            return Ok(Statement::Set(target, value));
        }
        let filters = self.filters(false)?;
        let body = self.outside_loops(|parser| parser.body("endset"))?;
        Ok(Statement::SetBlock { target, filters, body })
    }

    /// `|name(arguments)` as often as it stands there; the first one without its bar.
    fn filters(&mut self, is_bare: bool) -> Result<Vec<Filter>, TemplateError> {
        let mut filters = Vec::new();
        if is_bare {
            filters.push(self.filter()?);
        }
        while self.take_mark("|") {
            filters.push(self.filter()?);
        }
        Ok(filters)
    }

    fn filter(&mut self) -> Result<Filter, TemplateError> {
        let line = self.line();
        let name = self.dotted_name()?;
        let arguments = if self.is_mark("(") { self.arguments()? } else { Arguments::default() };
        Ok(Filter { name, arguments, line })
    }

    fn dotted_name(&mut self) -> Result<Arc<str>, TemplateError> {
        let mut name = self.expect_name()?;
        while self.take_mark(".") {
            name.push('.');
            name.push_str(&self.expect_name()?);
        }
        Ok(name.into())
    }

    fn target(&mut self) -> Result<Target, TemplateError> {
        let first = self.single_target()?;
        if !self.is_mark(",") {
            return Ok(first);
        }
        let mut targets = vec![first];
        while self.take_mark(",") {
            if !matches!(self.peek(), Token::Name(name) if name != "in") && !self.is_mark("(") {
                break;
            }
            targets.push(self.single_target()?);
        }
        Ok(Target::Tuple(targets))
    }

    fn single_target(&mut self) -> Result<Target, TemplateError> {
        if self.take_mark("(") {
            let target = self.nested(Self::target)?;
            self.expect_mark(")")?;
            return Ok(target);
        }
        let name = self.expect_name()?;
        if ["true", "false", "none", "True", "False", "None"].contains(&name.as_str()) {
            return self.error(format!("`{name}` cannot be assigned to"));
        }
        let symbol = self.symbol(&name);
        if self.take_mark(".") {
            return Ok(Target::Attribute(symbol, self.expect_name()?.into()));
        }
        Ok(Target::Name(symbol))
    }

    fn parameters(&mut self) -> Result<Vec<(Symbol, Option<Node>)>, TemplateError> {
        self.expect_mark("(")?;
        let mut parameters: Vec<(Symbol, Option<Node>)> = Vec::new();
        while !self.take_mark(")") {
            if !parameters.is_empty() {
                self.expect_mark(",")?;
                if self.take_mark(")") {
                    break;
                }
            }
            let name = self.expect_name()?;
            let symbol = self.symbol(&name);
            let default = if self.take_mark("=") {
                Some(self.expression()?)
            } else if parameters.last().is_some_and(|(_, default)| default.is_some()) {
                return self.error("a parameter without a default follows one that has it");
            } else {
                None
            };
            parameters.push((symbol, default));
        }
        Ok(parameters)
    }
}
