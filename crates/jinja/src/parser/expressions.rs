//! From tokens to the syntax tree: the expressions, from the loosest operator to the tightest.

use std::sync::Arc;

use super::{DEPTH, Parser};
use crate::ast::{Arguments, Comparison, Expression, Filter, Node, Operator};
use crate::error::TemplateError;
use crate::lexer::Token;
use crate::text::Text;

impl Parser {
    /// A node above others, of which the deepest is that deep.
    fn above(&self, expression: Expression, line: u32, below: u32) -> Result<Node, TemplateError> {
        let depth = below + 1;
        if DEPTH < depth {
            return self.error("an expression nests too deeply");
        }
        Ok(Node { expression, line, depth })
    }

    pub(super) fn expression(&mut self) -> Result<Node, TemplateError> {
        self.nested(|parser| parser.conditional(true))
    }

    /// One expression, or several with commas as a tuple. `has_if`: whether `a if b else c` may stand
    /// there, which it may not where `if` filters a loop.
    pub(super) fn tuple(&mut self, has_if: bool) -> Result<Node, TemplateError> {
        let line = self.line();
        let first = self.nested(|parser| parser.conditional(has_if))?;
        if !self.is_mark(",") {
            return Ok(first);
        }
        let mut items = vec![first];
        while self.take_mark(",") {
            let ends = matches!(self.peek(), Token::BlockEnd | Token::OutputEnd | Token::End);
            if ends || self.is_mark(")") || self.is_mark("]") || self.is_name("recursive") {
                break;
            }
            items.push(self.nested(|parser| parser.conditional(has_if))?);
        }
        let depth = items.iter().map(|item| item.depth).max().unwrap_or(0);
        self.above(Expression::Tuple(items), line, depth)
    }

    fn conditional(&mut self, has_if: bool) -> Result<Node, TemplateError> {
        let mut value = self.or()?;
        while has_if && self.is_name("if") {
            let line = self.line();
            self.at += 1;
            let test = self.or()?;
            let otherwise = if self.take_name("else") {
                Some(Box::new(self.nested(|parser| parser.conditional(true))?))
            } else {
                None
            };
            let depth = test.depth.max(value.depth);
            let depth = depth.max(otherwise.as_ref().map_or(0, |node| node.depth));
            let expression = Expression::Conditional(Box::new(test), Box::new(value), otherwise);
            value = self.above(expression, line, depth)?;
        }
        Ok(value)
    }

    fn or(&mut self) -> Result<Node, TemplateError> {
        self.joined("or", Self::and, Expression::Or)
    }

    fn and(&mut self) -> Result<Node, TemplateError> {
        self.joined("and", Self::not, Expression::And)
    }

    /// Operands with a word between each two.
    fn joined(
        &mut self,
        word: &str,
        operand: fn(&mut Self) -> Result<Node, TemplateError>,
        join: fn(Box<Node>, Box<Node>) -> Expression,
    ) -> Result<Node, TemplateError> {
        let mut left = operand(self)?;
        while self.is_name(word) {
            let line = self.line();
            self.at += 1;
            let right = operand(self)?;
            let depth = left.depth.max(right.depth);
            left = self.above(join(left.into(), right.into()), line, depth)?;
        }
        Ok(left)
    }

    fn not(&mut self) -> Result<Node, TemplateError> {
        let line = self.line();
        if !self.take_name("not") {
            return self.compare();
        }
        let value = self.nested(Self::not)?;
        let depth = value.depth;
        self.above(Expression::Not(value.into()), line, depth)
    }

    fn compare(&mut self) -> Result<Node, TemplateError> {
        let line = self.line();
        let first = self.sum()?;
        let mut others = Vec::new();
        loop {
            let comparison = match self.peek() {
                Token::Mark("==") => Comparison::Equal,
                Token::Mark("!=") => Comparison::NotEqual,
                Token::Mark("<") => Comparison::Less,
                Token::Mark("<=") => Comparison::LessOrEqual,
                Token::Mark(">") => Comparison::Greater,
                Token::Mark(">=") => Comparison::GreaterOrEqual,
                Token::Name(name) if name == "in" => Comparison::In,
                Token::Name(name) if name == "not" => match self.ahead(1) {
                    Token::Name(name) if name == "in" => {
                        self.at += 1;
                        Comparison::NotIn
                    }
                    _ => break,
                },
                _ => break,
            };
            self.at += 1;
            others.push((comparison, self.sum()?));
        }
        if others.is_empty() {
            return Ok(first);
        }
        let depth = others.iter().map(|(_, node)| node.depth).max().unwrap_or(0).max(first.depth);
        self.above(Expression::Compare(first.into(), others), line, depth)
    }

    /// Left-associative operators of one strength.
    fn chain(
        &mut self,
        operators: &[(&str, Operator)],
        operand: fn(&mut Self) -> Result<Node, TemplateError>,
    ) -> Result<Node, TemplateError> {
        let mut left = operand(self)?;
        while let Some(&(_, operator)) = operators.iter().find(|(mark, _)| self.is_mark(mark)) {
            let line = self.line();
            self.at += 1;
            let right = operand(self)?;
            let depth = left.depth.max(right.depth);
            let expression = Expression::Binary(operator, left.into(), right.into());
            left = self.above(expression, line, depth)?;
        }
        Ok(left)
    }

    fn sum(&mut self) -> Result<Node, TemplateError> {
        self.chain(&[("+", Operator::Add), ("-", Operator::Subtract)], Self::concat)
    }

    fn concat(&mut self) -> Result<Node, TemplateError> {
        let line = self.line();
        let first = self.product()?;
        if !self.is_mark("~") {
            return Ok(first);
        }
        let mut items = vec![first];
        while self.take_mark("~") {
            items.push(self.product()?);
        }
        let depth = items.iter().map(|item| item.depth).max().unwrap_or(0);
        self.above(Expression::Concat(items), line, depth)
    }

    fn product(&mut self) -> Result<Node, TemplateError> {
        let operators = [
            ("*", Operator::Multiply),
            ("/", Operator::Divide),
            ("//", Operator::IntegerDivide),
            ("%", Operator::Modulo),
        ];
        self.chain(&operators, Self::power)
    }

    fn power(&mut self) -> Result<Node, TemplateError> {
        self.chain(&[("**", Operator::Power)], |parser| parser.unary(true))
    }

    fn unary(&mut self, has_filters: bool) -> Result<Node, TemplateError> {
        let line = self.line();
        let sign: Option<fn(Box<Node>) -> Expression> = if self.take_mark("-") {
            Some(Expression::Negative)
        } else if self.take_mark("+") {
            Some(Expression::Positive)
        } else {
            None
        };
        let node = match sign {
            Some(sign) => {
                let value = self.nested(|parser| parser.unary(false))?;
                let depth = value.depth;
                self.above(sign(value.into()), line, depth)?
            }
            None => {
                let value = self.primary()?;
                self.postfix(value)?
            }
        };
        if has_filters { self.filtered(node) } else { Ok(node) }
    }

    fn primary(&mut self) -> Result<Node, TemplateError> {
        let line = self.line();
        let leaf = |expression| Ok(Node { expression, line, depth: 1 });
        match self.peek() {
            Token::Name(_) => {
                let name = self.expect_name()?;
                match name.as_str() {
                    "true" | "True" => leaf(Expression::Bool(true)),
                    "false" | "False" => leaf(Expression::Bool(false)),
                    "none" | "None" => leaf(Expression::None),
                    name => {
                        let symbol = self.symbol(name);
                        leaf(Expression::Name(symbol))
                    }
                }
            }
            Token::Text(_) => {
                let mut text = String::new();
                while matches!(self.peek(), Token::Text(_)) {
                    if let Token::Text(part) = self.next() {
                        text.push_str(&part);
                    }
                }
                leaf(Expression::Text(Arc::new(Text::template(text))))
            }
            &Token::Int(number) => {
                self.at += 1;
                leaf(Expression::Int(number))
            }
            &Token::Float(number) => {
                self.at += 1;
                leaf(Expression::Float(number))
            }
            Token::Mark("(") => {
                self.at += 1;
                if self.take_mark(")") {
                    return leaf(Expression::Tuple(Vec::new()));
                }
                let inner = self.nested(|parser| parser.tuple(true))?;
                self.expect_mark(")")?;
                Ok(inner)
            }
            Token::Mark("[") => {
                self.at += 1;
                let items = self.items("]")?;
                let depth = items.iter().map(|item| item.depth).max().unwrap_or(0);
                self.above(Expression::List(items), line, depth)
            }
            Token::Mark("{") => {
                self.at += 1;
                let mut entries: Vec<(Node, Node)> = Vec::new();
                while !self.take_mark("}") {
                    if !entries.is_empty() {
                        self.expect_mark(",")?;
                        if self.take_mark("}") {
                            break;
                        }
                    }
                    let key = self.expression()?;
                    self.expect_mark(":")?;
                    entries.push((key, self.expression()?));
                }
                let depths = entries.iter().map(|(key, value)| key.depth.max(value.depth));
                let depth = depths.max().unwrap_or(0);
                self.above(Expression::Map(entries), line, depth)
            }
            _ => self.unexpected("an expression"),
        }
    }

    fn items(&mut self, end: &str) -> Result<Vec<Node>, TemplateError> {
        let mut items = Vec::new();
        while !self.take_mark(end) {
            if !items.is_empty() {
                self.expect_mark(",")?;
                if self.take_mark(end) {
                    break;
                }
            }
            items.push(self.expression()?);
        }
        Ok(items)
    }

    /// Attributes, items and calls.
    fn postfix(&mut self, mut node: Node) -> Result<Node, TemplateError> {
        loop {
            let line = self.line();
            let depth = node.depth;
            if self.take_mark(".") {
                let expression = if let &Token::Int(number) = self.peek() {
                    self.at += 1;
                    let index = Node { expression: Expression::Int(number), line, depth: 1 };
                    Expression::Item(node.into(), index.into())
                } else {
                    Expression::Attribute(node.into(), self.expect_name()?.into())
                };
                node = self.above(expression, line, depth)?;
            } else if self.take_mark("[") {
                node = self.nested(|parser| parser.subscript(node, line))?;
            } else if self.is_mark("(") {
                let arguments = self.arguments()?;
                let depth = depth.max(arguments.depth());
                let expression = Expression::Call(node.into(), arguments.into());
                node = self.above(expression, line, depth)?;
            } else {
                return Ok(node);
            }
        }
    }

    fn subscript(&mut self, node: Node, line: u32) -> Result<Node, TemplateError> {
        let mut bounds: [Option<Node>; 3] = [None, None, None];
        let mut n_colons = 0;
        for bound in &mut bounds {
            if !self.is_mark(":") && !self.is_mark("]") {
                *bound = Some(self.tuple(true)?);
            }
            if self.is_mark("]") || 2 <= n_colons {
                break;
            }
            self.expect_mark(":")?;
            n_colons += 1;
        }
        self.expect_mark("]")?;
        let below = bounds.iter().flatten().map(|bound| bound.depth).max().unwrap_or(0);
        let depth = node.depth.max(below);
        let expression = match bounds {
            [Some(index), None, None] if n_colons == 0 => {
                Expression::Item(node.into(), index.into())
            }
            _ if n_colons == 0 => return self.unexpected("an index"),
            bounds => Expression::Slice(node.into(), bounds.into()),
        };
        self.above(expression, line, depth)
    }

    pub(super) fn arguments(&mut self) -> Result<Arguments, TemplateError> {
        self.expect_mark("(")?;
        let mut arguments = Arguments::default();
        let mut is_first = true;
        while !self.take_mark(")") {
            if !is_first {
                self.expect_mark(",")?;
                if self.take_mark(")") {
                    break;
                }
            }
            is_first = false;
            if self.take_mark("**") {
                arguments.named_rest = Some(self.expression()?);
            } else if self.take_mark("*") {
                arguments.rest = Some(self.expression()?);
            } else if matches!(self.peek(), Token::Name(_)) && *self.ahead(1) == Token::Mark("=") {
                let name = self.expect_name()?;
                self.at += 1;
                let name = Arc::new(Text::template(name));
                arguments.named.push((name, self.expression()?));
            } else if !arguments.named.is_empty() {
                return self.error("an argument without a name follows one that has it");
            } else {
                arguments.positional.push(self.expression()?);
            }
        }
        Ok(arguments)
    }

    /// Filters, tests and calls behind them.
    fn filtered(&mut self, mut node: Node) -> Result<Node, TemplateError> {
        loop {
            let line = self.line();
            let depth = node.depth;
            if self.take_mark("|") {
                let filter = self.filter()?;
                let depth = depth.max(filter.arguments.depth());
                let expression = Expression::Filter(node.into(), filter.into());
                node = self.above(expression, line, depth)?;
            } else if self.take_name("is") {
                let is_negated = self.take_name("not");
                let test = self.test(line)?;
                let depth = depth.max(test.arguments.depth());
                let expression =
                    Expression::Test { value: node.into(), test: test.into(), is_negated };
                node = self.above(expression, line, depth)?;
            } else if self.is_mark("(") {
                let arguments = self.arguments()?;
                let depth = depth.max(arguments.depth());
                let expression = Expression::Call(node.into(), arguments.into());
                node = self.above(expression, line, depth)?;
            } else {
                return Ok(node);
            }
        }
    }

    /// A test's name and arguments; a single one needs no brackets.
    fn test(&mut self, line: u32) -> Result<Filter, TemplateError> {
        let name = self.dotted_name()?;
        if self.is_mark("(") {
            return Ok(Filter { name, arguments: self.arguments()?, line });
        }
        let has_argument = match self.peek() {
            Token::Name(word) => !["else", "or", "and", "is", "if", "not", "in"].contains(&&**word),
            Token::Text(_) | Token::Int(_) | Token::Float(_) => true,
            Token::Mark(mark) => ["[", "{"].contains(mark),
            _ => false,
        };
        let mut arguments = Arguments::default();
        if has_argument {
            let argument = self.primary()?;
            arguments.positional.push(self.postfix(argument)?);
        }
        Ok(Filter { name, arguments, line })
    }
}

impl Arguments {
    /// Of the deepest one.
    fn depth(&self) -> u32 {
        let named = self.named.iter().map(|(_, node)| node);
        let rest = self.rest.iter().chain(&self.named_rest);
        let nodes = self.positional.iter().chain(named).chain(rest);
        nodes.map(|node| node.depth).max().unwrap_or(0)
    }
}
