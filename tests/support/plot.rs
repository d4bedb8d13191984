//! A line chart as SVG, for runs whose course is worth a look.

use std::fmt::Write as _;

/// One line of a chart: its name, its colour, its points as (x, y).
pub struct Line<'a> {
    pub name: &'a str,
    pub colour: &'a str,
    pub points: Vec<(f64, f64)>,
}

/// Draws the lines over one x axis from 0; y begins at 0 too, so that nothing looks steeper than it is.
pub fn chart(title: &str, x_name: &str, y_name: &str, lines: &[Line<'_>]) -> String {
    let (width, height, left, bottom, top) = (860.0, 320.0, 64.0, 44.0, 48.0);
    let all = || lines.iter().flat_map(|line| &line.points);
    let x_max = all().map(|point| point.0).fold(1.0, f64::max);
    let y_max = all().map(|point| point.1).fold(1.0, f64::max) * 1.15;
    let x = |value: f64| left + value / x_max * (width - left - 20.0);
    let y = |value: f64| height - bottom - value / y_max * (height - bottom - top);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\" fill=\"#222\"><rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\
         <text x=\"{left}\" y=\"20\" font-size=\"14\">{title}</text>\n"
    );
    for step in 0..=4 {
        let (at_x, at_y) = (x_max * f64::from(step) / 4.0, y_max * f64::from(step) / 4.0);
        let _ = writeln!(
            svg,
            "<path d=\"M{left} {0:.1}H{1}\" stroke=\"#ddd\"/><text x=\"{2}\" y=\"{0:.1}\" text-anchor=\"end\">{at_y:.1}\
             </text><text x=\"{3:.1}\" y=\"{4}\" text-anchor=\"middle\">{at_x:.0}</text>",
            y(at_y),
            width - 20.0,
            left - 6.0,
            x(at_x),
            height - bottom + 18.0,
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{x_name}</text><text x=\"{left}\" y=\"38\">{y_name}</text>",
        width / 2.0,
        height - 8.0
    );
    for (number, line) in lines.iter().enumerate() {
        let path: String = line
            .points
            .iter()
            .enumerate()
            .map(|(at, point)| {
                let letter = if at == 0 { 'M' } else { 'L' };
                format!("{letter}{:.1} {:.1}", x(point.0), y(point.1))
            })
            .collect();
        let at = width - 20.0 - 150.0 * (lines.len() - number) as f64;
        let _ = writeln!(
            svg,
            "<path d=\"{path}\" fill=\"none\" stroke=\"{0}\" stroke-width=\"1.5\"/>\
             <text x=\"{at}\" y=\"38\" fill=\"{0}\">{1}</text>",
            line.colour, line.name
        );
    }
    svg + "</svg>\n"
}
